"""What the methods of quantization share: a weight stored in several tensors, and arithmetic with its scales.

A weight is dequantized when it is read, a few rows at a time, so that little more than the result is in memory.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from jaxlens.checkpoints.arrays import Rows, whole
from jaxlens.checkpoints.rules.hf_config import Reader
from jaxlens.checkpoints.rules.rule import FLOATS, Tensors, stored_dtype
from jaxlens.errors import CheckpointError

Shape = tuple[int, ...]
Fill = Callable[[slice, np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class Packed:
    """A weight that is computed from several stored tensors.

    `dtype` is the dtype to which the library rounds its values, as safetensors spells it. `open` reads the stored
    tensors, and returns these values, to be computed in parts, or in a wider dtype. Leading axes of the weight may be
    part of its rows. `kind` says in words how the weight is stored.
    """

    parts: tuple[str, ...]
    shape: Shape
    dtype: str
    kind: str
    open: Callable[[], Rows | np.ndarray]

    def read(self) -> np.ndarray:
        """The weight."""
        return whole(self.open()).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of quantization.

    `settings` reads the quantization_config of a config.json. `packed` finds the quantized weights among the stored
    tensors, by the name that the weight has without quantization. Tensors whose names end with one of `companions` must
    be part of a quantized weight. Tensors that match `activations` describe the quantization of activations or of a
    cache of keys and values, which jaxlens does not quantize. `unused` are the fields of quantization_config that do
    not change the weights.
    """

    title: str
    settings: Callable[[Reader], Any]
    packed: Callable[[Tensors, Any], Mapping[str, Packed]]
    companions: tuple[str, ...]
    activations: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def inside(hf: Reader, name: str, unused: Iterable[str] = ()) -> Reader:
    """The fields of a nested object. Those that are null or in `unused` count as read."""
    nested, fields = hf.inside(name), hf(name)
    for field in {*unused, *(field for field, value in fields.items() if value is None)}:
        nested(field, None)
    return nested


# ---- stored tensors -------------------------------------------------------------------------------------------------


def stems(tensors: Tensors, suffix: str) -> list[str]:
    """The names that end with `suffix`, without it."""
    return [name.removesuffix(suffix) for name in tensors.names() if name.endswith(suffix)]


class Parts:
    """The stored tensors of one quantized weight. Their names are `stem` and the names of the parts.

    Raises a CheckpointError if a part is missing.
    """

    def __init__(
        self, tensors: Tensors, names: set[str], stem: str, needed: Iterable[str], optional: Iterable[str] = ()
    ):
        needed = tuple(needed)
        self._tensors, self._stem = tensors, stem
        self.present = (*needed, *(part for part in optional if stem + part in names))
        if missing := [stem + part for part in needed if stem + part not in names]:
            found = ", ".join(stem + part for part in self.present if stem + part in names)
            raise CheckpointError(f"{' and '.join(missing)} missing beside {found}; download the checkpoint again")

    def __contains__(self, part: str) -> bool:
        return part in self.present

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._stem + part for part in self.present)

    def shape(self, part: str) -> Shape:
        return tuple(self._tensors.shape(self._stem + part))

    def dtype(self, part: str) -> str:
        return stored_dtype(self._tensors, self._stem + part)

    def read(self, part: str) -> np.ndarray:
        return self._tensors.read(self._stem + part)

    def expect(self, part: str, dtypes: Iterable[str], *shapes: Shape) -> None:
        """Raises a CheckpointError unless a part has one of these dtypes and, if any are given, one of these shapes."""
        dtypes = tuple(dtypes)
        if self.dtype(part) in dtypes and (not shapes or self.shape(part) in shapes):
            return
        wanted = " or ".join(dtypes) + (f" of shape {' or '.join(map(str, shapes))}" if shapes else "")
        has = f"{self._stem}{part} is {self.dtype(part)} of shape {self.shape(part)}"
        raise CheckpointError(f"{has}; expected {wanted}, as {self._stem}{self.present[0]} needs")


# ---- arithmetic -----------------------------------------------------------------------------------------------------


def rounded(dtype: str, fill: Fill, *, normal: bool = False) -> Fill:
    """Computes rows with `fill`, and rounds them to `dtype`. `normal`: see `round_to`.

    Example:
        >>> thirds = rounded("BF16", lambda rows, out: np.copyto(out, np.arange(rows.start, rows.stop) / 3))
        >>> out = np.empty(4, np.float32)
        >>> thirds(slice(1, 5), out)
        >>> out.tolist()
        [0.333984375, 0.66796875, 1.0, 1.3359375]
    """

    def fill_rounded(rows: slice, out: np.ndarray) -> None:
        fill(rows, out)
        round_to(out, dtype, normal)

    return fill_rounded


NORMAL = {"F16": (13, 2**-14, 65504), "BF16": (16, 2**-100, 2**100)}
"""How many bits fewer than float32 a dtype has, and between which magnitudes its values have as many."""


def round_to(values: np.ndarray, dtype: str, normal: bool = False) -> None:
    """Rounds float32 values to the nearest values of a dtype. With `normal`, they are known to be zero or in `NORMAL`.

    The difference of two sums with a multiple of the value cancels its lower bits (Dekker 1971, "A floating-point
    technique for extending the available precision", section 5). This is faster than to convert the values.

    Example:
        >>> values = np.array([0.1, -3.14159], np.float32)
        >>> expected = values.astype(np.float16)
        >>> round_to(values, "F16")
        >>> values.tolist() == expected.tolist()
        True
    """
    if dtype not in NORMAL:
        return
    if not (normal or (dtype == "F16" and _are_normal(values))):
        values[...] = values.astype(FLOATS[dtype])
        return
    multiple = values * np.float32(2 ** NORMAL[dtype][0] + 1)
    np.subtract(multiple, values, out=values)
    np.subtract(multiple, values, out=values)


def _are_normal(values: np.ndarray) -> bool:
    magnitudes = values.view(np.uint32) & np.uint32(0x7FFFFFFF)  # in the order of the magnitudes of the floats
    low, high = np.array(NORMAL["F16"][1:], np.float32).view(np.uint32)
    if magnitudes.max(initial=0) > high:
        return False
    magnitudes -= np.uint32(1)  # zero becomes the largest integer
    return magnitudes.min(initial=low) >= low - 1


def products_are_normal(dtype: str, scales: np.ndarray, low: float, high: float) -> bool:
    """Whether products of scales and of factors between `low` and `high`, or zero, are zero or normal in a dtype."""
    if dtype not in NORMAL:
        return False
    magnitudes = np.abs(scales[scales != 0]).astype(np.float32)
    least, most = magnitudes.min(initial=np.inf), magnitudes.max(initial=0)  # NaN if one is
    return bool(least * low >= NORMAL[dtype][1] and most * high <= NORMAL[dtype][2])


SPREAD: Mapping[int, tuple[str, tuple[tuple[int, int], ...]]] = {
    4: ("u2", ((4, 0x0F0F),)), 2: ("u4", ((12, 0x000F000F), (6, 0x03030303))),
}  # fmt: skip
"""A larger integer in which each integer of a byte gets a byte of its own: by shifts, and what to keep after them."""


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """The integers of `bits` bits that are packed along the last axis, the first in the lowest bits, as uint8.

    An integer may begin in one word and end in the next.

    Example:
        >>> unpack(np.array([0x87654321, 9], np.uint32), 4).tolist()
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 0, 0, 0, 0]
        >>> unpack(np.array([0b11_10_01_00], np.uint8), 2).tolist()
        [0, 1, 2, 3]
        >>> unpack(np.array([0b10_101_100_011_010_001_000 | 6 << 21], np.uint32), 3)[:7].tolist()
        [0, 1, 2, 3, 4, 5, 2]
    """
    stored = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return stored
    if bits in SPREAD:
        wider, steps = SPREAD[bits]
        spread = stored.astype(wider)
        for shift, mask in steps:
            spread |= spread << shift
            spread &= mask
        return spread.view(np.uint8)
    n_bytes = stored.shape[-1]
    padding = [(0, 0)] * (stored.ndim - 1) + [(0, -n_bytes % bits)]
    stored = np.pad(stored, padding).reshape(*stored.shape[:-1], -1, bits)  # eight integers have `bits` bytes
    integers = unpack_rows(np.moveaxis(stored, -1, 0), bits).view(np.uint8)
    return np.moveaxis(integers, 0, -1).reshape(*stored.shape[:-2], -1)[..., : 8 * n_bytes // bits]


def unpack_rows(words: np.ndarray, bits: int) -> np.ndarray:
    """The integers of `bits` bits that are packed along the first axis, the first in the lowest bits.

    Example:
        >>> unpack_rows(np.array([[0x21, 0x54], [0x43, 0x76]], np.uint8), 4).tolist()
        [[1, 4], [2, 5], [3, 6], [4, 7]]
    """
    size = 8 * words.itemsize
    n_words = math.lcm(size, bits) // size  # in which integers neither begin nor end
    if missing := -len(words) % n_words:
        words = np.pad(words, [(0, missing), *[(0, 0)] * (words.ndim - 1)])
    words = words.view(f"u{words.itemsize}").reshape(-1, n_words, *words.shape[1:])
    result = np.empty((len(words), n_words * size // bits, *words.shape[2:]), words.dtype)
    starts = np.arange(result.shape[1]) * bits
    for word in range(n_words):
        (inside,) = np.nonzero(starts // size == word)
        shifts = (starts[inside] % size).astype(words.dtype).reshape(-1, *[1] * (words.ndim - 2))
        chosen = result[:, inside[0] : inside[-1] + 1]
        np.right_shift(words[:, word, None], shifts, out=chosen)
        if (rest := size - int(starts[inside[-1]]) % size) < bits:  # the last ends in the next word
            chosen[:, -1] |= words[:, word + 1] << words.dtype.type(rest)
    result &= words.dtype.type(2**bits - 1)
    result = result.reshape(-1, *result.shape[2:])
    return result.view(f"i{words.itemsize}") if bits < size else result  # NumPy converts signed integers faster


class Grid:
    """A value for each block of a weight: a scale or a zero point. `apply` combines it with some rows of the weight.

    `values` has one row per `height` rows of a weight with `shape`, in which leading axes are counted as rows. It has
    one column per `width` columns of the weight. Or `rows` or `columns` are the row or column of `values` for each row
    or column of the weight.
    """

    def __init__(
        self, values: np.ndarray, shape: Shape, height: int, width: int, columns: np.ndarray | None = None,
        rows: np.ndarray | None = None,
    ):  # fmt: skip
        per_matrix, row = values.shape[-2], np.arange(math.prod(shape[:-1]))
        self._rows = row // shape[-2] * per_matrix + row % shape[-2] // height if rows is None else rows
        values = np.broadcast_to(values, (*shape[:-2], *values.shape[-2:]))
        self._values, self._columns, self._width = values.reshape(-1, values.shape[-1]), columns, width
        self._values = self._values.astype(np.float32)

    def apply(self, function: np.ufunc, values: np.ndarray, rows: slice) -> None:
        """Replaces `values`, some rows of the weight, by `function` of them and of the values of their blocks."""
        row = self._rows[rows]
        chosen = self._values[row[:1] if (row == row[0]).all() else row]
        if self._columns is not None:
            chosen = np.take(chosen, self._columns, axis=1)
        elif self._width > 1 and values.shape[-1] % self._width == 0:
            values, chosen = values.reshape(len(values), -1, self._width), chosen[:, :, None]
        elif self._width > 1:
            chosen = np.repeat(chosen, self._width, axis=1)[:, : values.shape[-1]]
        function(values, chosen, out=values)


def blocks(shape: Shape, grid: Shape, given: tuple[int | None, int | None] = (None, None)) -> tuple[int, int] | None:
    """The height and width of blocks of a weight, from the shape of their scales. None if the two do not match.

    `given` are the sizes that config.json describes. The last block of a row or column may then be smaller.

    Example:
        >>> blocks((192, 256), (2, 2), (128, 128)), blocks((192, 64), (192, 2)), blocks((192, 64), (1, 5))
        ((128, 128), (1, 32), None)
    """
    sizes = []
    for length, count, size in zip(shape[-2:], grid[-2:], given, strict=True):
        if size and count == -(-length // size):
            sizes.append(min(size, length))
        elif count and length % count == 0:
            sizes.append(length // count)
        else:
            return None
    return sizes[0], sizes[1]


def grid_shape(shape: Shape, scales: Shape) -> Shape | None:
    """The shape of scales with an axis for each axis of the weight. None if the two do not match.

    A single scale may have no axes. Otherwise axes are left out at the end: one scale per row, or per matrix.
    """
    if len(shape) < 2 or 0 in shape:
        return None
    if math.prod(scales) == 1:
        return (1,) * len(shape)
    padded = (*scales, *(1,) * (len(shape) - len(scales)))
    matches = len(padded) == len(shape) and all(n in (1, length) for n, length in zip(padded, shape[:-2], strict=False))
    return padded if matches else None


def described(height: int, width: int, shape: Shape) -> str:
    """In words: the blocks of a weight that share a scale."""
    if (height, width) == tuple(shape[-2:]):
        return "with one scale"
    if width == shape[-1]:
        return "with a scale per row" if height == 1 else f"in blocks of {height} rows"
    return f"in groups of {width}" if height == 1 else f"in blocks of {height} x {width}"
