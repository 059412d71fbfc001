"""Changes that llama.cpp's converter makes to tensors, reversed.

A change makes a tensor of Hugging Face from one or several tensors of a GGUF file. Axes are written as elsewhere: `n`
query head, `k` key/value head, `h` d_head, `d` d_model, `e` expert, `f` d_expert.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxlens.checkpoints.gguf.metadata import Metadata
from jaxlens.errors import CheckpointError

Shape = tuple[int, ...]


class Change:
    """By default, the tensor of the file as it is."""

    def shape(self, shapes: Sequence[Shape], file: Metadata) -> Shape:
        """The shape of the result, from the shapes of the stored tensors."""
        return tuple(shapes[0])

    def value(self, values: Sequence[np.ndarray], file: Metadata) -> np.ndarray:
        """The result, from the stored tensors."""
        return values[0]


SAME = Change()


@dataclass(frozen=True)
class Rows(Change):
    """Reorders rows. `order` returns the stored row of each row, from the metadata and the number of rows."""

    order: Callable[[Metadata, int], np.ndarray]

    def value(self, values: Sequence[np.ndarray], file: Metadata) -> np.ndarray:
        return values[0][self.order(file, len(values[0]))]


@dataclass(frozen=True)
class Plus(Change):
    """Adds a constant: Gemma's and Nemotron's norms multiply by 1 + weight, and the file contains 1 + weight."""

    constant: float

    def value(self, values: Sequence[np.ndarray], file: Metadata) -> np.ndarray:
        return values[0] + np.float32(self.constant)


class Transposed(Change):
    """Exchanges the last two axes, for Hugging Face's tensors [in, out]. A bias has one axis and does not change."""

    def shape(self, shapes: Sequence[Shape], file: Metadata) -> Shape:
        *leading, rows, columns = (1, *shapes[0])
        return tuple([*leading, columns, rows][1:]) if len(shapes[0]) > 1 else tuple(shapes[0])

    def value(self, values: Sequence[np.ndarray], file: Metadata) -> np.ndarray:
        return values[0].swapaxes(-1, -2) if values[0].ndim > 1 else values[0]


class AsRow(Change):
    """A vector as a matrix with one row. Older converters removed axes of length 1."""

    def shape(self, shapes: Sequence[Shape], file: Metadata) -> Shape:
        return (1, *shapes[0]) if len(shapes[0]) == 1 else tuple(shapes[0])

    def value(self, values: Sequence[np.ndarray], file: Metadata) -> np.ndarray:
        return values[0].reshape(self.shape([values[0].shape], file))


@dataclass(frozen=True)
class Part(Change):
    """Some rows of a fused tensor: part `index` of parts with `sizes` rows, which another change may then reorder."""

    index: int
    sizes: Callable[[Metadata, int], Sequence[int]]
    then: Change = SAME

    def shape(self, shapes: Sequence[Shape], file: Metadata) -> Shape:
        return self.then.shape([(self._sizes(shapes[0][0], file)[self.index], *shapes[0][1:])], file)

    def value(self, values: Sequence[np.ndarray], file: Metadata) -> np.ndarray:
        sizes = self._sizes(len(values[0]), file)
        start = sum(sizes[: self.index])
        return self.then.value([values[0][start : start + sizes[self.index]]], file)

    def _sizes(self, rows: int, file: Metadata) -> Sequence[int]:
        sizes = self.sizes(file, rows)
        if sum(sizes) != rows:
            raise CheckpointError(f"has {rows} rows; expected {' + '.join(map(str, sizes))}")
        return sizes


class Joined(Change):
    """Gate and up of all experts, [e f d] each, in one tensor [e (two f) d]."""

    def shape(self, shapes: Sequence[Shape], file: Metadata) -> Shape:
        experts, _, *rest = shapes[0]
        return (experts, sum(shape[1] for shape in shapes), *rest)

    def value(self, values: Sequence[np.ndarray], file: Metadata) -> np.ndarray:
        return np.concatenate(values, axis=1)


class Alternating(Change):
    """Gate and up of all experts, [e f d] each, in one tensor [e d (f two)]. Biases become [e (f two)]."""

    def shape(self, shapes: Sequence[Shape], file: Metadata) -> Shape:
        experts, neurons, *rest = shapes[0]
        return (experts, *rest, 2 * neurons)

    def value(self, values: Sequence[np.ndarray], file: Metadata) -> np.ndarray:
        whole = np.empty(self.shape([value.shape for value in values], file), np.float32)
        for i, value in enumerate(values):
            whole[..., i::2] = value.swapaxes(1, -1)
        return whole


class KeysAndValues(Change):
    """DeepSeek's up-projections of keys [n z y], transposed, and of values [n t z], in one tensor [(n (y t)) z]."""

    def shape(self, shapes: Sequence[Shape], file: Metadata) -> Shape:
        (heads, latent, keys), (_, values, _) = shapes
        return (heads * (keys + values), latent)

    def value(self, values: Sequence[np.ndarray], file: Metadata) -> np.ndarray:
        keys, values = values
        return np.concatenate([keys.swapaxes(1, 2), values], axis=1).reshape(-1, keys.shape[1])


# ---- orders of rows -------------------------------------------------------------------------------------------------


def halves(heads: str) -> Rows:
    """llama.cpp rotates pairs of adjacent rows, Hugging Face pairs from the two halves of a head.

    `heads` is the attribute of Metadata with the number of heads.
    """

    def order(file: Metadata, rows: int) -> np.ndarray:
        count, size = getattr(file, heads), file.head_dim
        if rows != count * size:
            raise CheckpointError(f"has {rows} rows; expected {count * size}, for {count} heads of size {size}")
        return np.arange(rows).reshape(count, size // 2, 2).swapaxes(1, 2).ravel()

    return Rows(order)


def by_head(file: Metadata, rows: int) -> np.ndarray:
    """Queries, keys and values: stored as [(three n h)], in Hugging Face [(n three h)]."""
    if rows % (3 * file.heads):
        raise CheckpointError(f"has {rows} rows; expected queries, keys and values of {file.heads} heads")
    return np.arange(rows).reshape(3, file.heads, -1).swapaxes(0, 1).ravel()


def by_group(file: Metadata, rows: int) -> np.ndarray:
    """All queries, then all keys, then all values; in Hugging Face, those of each key/value head."""
    heads, groups = file.heads, file.kv_heads
    if rows % (heads + 2 * groups):
        raise CheckpointError(f"has {rows} rows; expected {heads} queries and {groups} keys and values of one size")
    size = rows // (heads + 2 * groups)
    queries, keys, values = np.split(np.arange(rows), [heads * size, (heads + groups) * size])
    return np.concatenate([part.reshape(groups, -1) for part in (queries, keys, values)], axis=1).ravel()


def qkv_sizes(file: Metadata, rows: int) -> tuple[int, int, int]:
    """The rows of queries, keys and values in a fused tensor."""
    keys = file.kv_heads * file.head_dim
    return file.heads * file.head_dim, keys, keys


def two_halves(file: Metadata, rows: int) -> tuple[int, int]:
    return rows // 2, rows - rows // 2
