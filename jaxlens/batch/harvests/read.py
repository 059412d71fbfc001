"""Reads harvests, and the files of hidden states that vLLM writes.

Axes: r row, l layer, d d_model.
"""

import functools
import itertools
import math
import operator
import os
import reprlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.batch.contexts import positive
from jaxlens.batch.harvests import index as index_file
from jaxlens.batch.harvests.order import Order
from jaxlens.batch.harvests.shard_file import SHARD, HarvestError, ShardInfo, checksum, read_columns, read_info
from jaxlens.errors import require

Rows = dict[str, np.ndarray]
"""Columns of rows by name: activations, and where each row comes from."""


class TokenRows(Sequence):
    """Rows of activations in several files, one row per token, memory-mapped.

    `rows[5]` is a row, and `rows[5:9]` or `rows[[2, 7]]` are several: a dict of arrays with the activations by name,
    and `document`, `tokens` and `position`.
    """

    def __init__(self, sizes: Sequence[int]):
        self._starts = np.concatenate([[0], np.cumsum(np.asarray(sizes, np.int64))])
        self._columns = functools.lru_cache(maxsize=64)(self._open)

    def _open(self, file: int) -> Mapping[str, np.ndarray]:
        """The columns of a file."""
        raise NotImplementedError

    def _fingerprint(self, file: int) -> str:
        """What tells the contents of a file from others."""
        raise NotImplementedError

    @property
    def names(self) -> list[str]:
        """The names of the activations."""
        return [name for name in self._columns(0) if name not in ("document", "tokens", "position", "part")]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows: Any) -> Rows:
        if isinstance(rows, slice):
            return self._read(np.arange(len(self))[rows] if rows.step not in (None, 1) else rows)
        numbers = np.asarray(rows)
        if numbers.dtype == bool and numbers.shape == (len(self),):
            numbers = np.flatnonzero(numbers)
        if numbers.ndim > 1 or (numbers.size and not np.issubdtype(numbers.dtype, np.integer)):
            raise TypeError(f"rows are integers, a slice or a mask of {len(self)} rows; got {reprlib.repr(rows)}")
        if (beyond := numbers[(numbers < -len(self)) | (numbers >= len(self))]).size:
            raise IndexError(f"row {beyond[0]} is out of range; there are {len(self)} rows")
        found = self._read(np.atleast_1d(numbers).astype(np.int64) % max(1, len(self)))
        return {name: value[0] for name, value in found.items()} if numbers.ndim == 0 else found

    def _read(self, rows: slice | np.ndarray, names: Sequence[str] | None = None) -> Rows:
        """Consecutive or chosen rows, as new arrays."""
        if isinstance(rows, slice):
            first, stop, _ = rows.indices(len(self))
            return self._joined(list(self._pieces(first, max(first, stop))), names)
        files = np.searchsorted(self._starts, rows, side="right") - 1
        found: Rows = {}
        for file in np.unique(files):
            at = files == file
            for name, column in self._chosen(self._columns(int(file)), names).items():
                values = column[rows[at] - self._starts[file]]
                found.setdefault(name, np.empty((len(rows), *values.shape[1:]), values.dtype))[at] = values
        return found or self._joined([], names)

    def _pieces(self, first: int, stop: int) -> Iterator[tuple[int, slice]]:
        """The files of consecutive rows, and which of their rows these are."""
        while first < stop:
            file = int(np.searchsorted(self._starts, first, side="right")) - 1
            end = min(stop, int(self._starts[file + 1]))
            yield file, slice(first - int(self._starts[file]), end - int(self._starts[file]))
            first = end

    def _joined(self, pieces: list[tuple[int, slice]], names: Sequence[str] | None) -> Rows:
        pieces = pieces or [(0, slice(0, 0))]
        parts = [self._chosen(self._columns(file), names) for file, _ in pieces]
        return {
            name: np.concatenate([part[name][at] for part, (_, at) in zip(parts, pieces, strict=True)])
            for name in parts[0]
        }

    def _chosen(self, columns: Mapping[str, np.ndarray], names: Sequence[str] | None) -> Mapping[str, np.ndarray]:
        if names is None:
            return columns
        if not names:
            raise KeyError(f"names is empty; the rows hold {', '.join(columns)}")
        if missing := [name for name in names if name not in columns]:
            raise KeyError(f"there is no {missing[0]!r}; the rows hold {', '.join(columns)}")
        return {name: columns[name] for name in names}

    def batches(
        self, size: int, *, shuffle: int | None = None, epochs: int | None = 1, start: int = 0,
        names: Sequence[str] | None = None, drop_last: bool = False,
    ) -> Iterator[Rows]:  # fmt: skip
        """Batches of `size` rows, in the order of the data or shuffled by a seed, differently in each epoch.

        Shuffled rows come from all files: chunks of 256 rows are read in random order, and the rows of 256 chunks are
        mixed, which is all that is in memory. `epochs=None` never ends. `start` is the number of batches to skip,
        counted over all epochs: the batches from there on are those of an undisturbed run. `names` selects columns.
        The last batch of an epoch may be smaller, or is left out with `drop_last`.

        Raises:
            ValueError: `size`, `shuffle`, `epochs` or `start` is not such a number.
            KeyError: The rows have no such column.
        """
        names = [names] if isinstance(names, str) else names
        size = positive("size", size)
        _check("start", start)
        if shuffle is not None:
            _check("shuffle", shuffle, " (the seed), or None for the order of the data")
        if epochs is not None:
            _check("epochs", epochs, ", or None for epochs without end")
        n_batches = len(self) // size if drop_last else -(-len(self) // size)
        if not n_batches:
            return
        for epoch in itertools.count(start // n_batches):
            if epochs is not None and epoch >= epochs:
                return
            skipped = start % n_batches if epoch == start // n_batches else 0
            shuffled = self._shuffled(Order(len(self), shuffle, epoch), skipped * size, names)
            yield from itertools.islice(_in_batches(shuffled, size), n_batches - skipped)

    def _shuffled(self, order: Order, start: int, names: Sequence[str] | None) -> Iterator[Rows]:
        for chunks, places in order.pools(start):
            pieces = [piece for chunk in chunks for piece in self._pieces(chunk.start, chunk.stop)]
            rows = self._joined(pieces, names)
            yield {name: column[places] for name, column in rows.items()}

    def to_dataset(self, context_size: int, names: Sequence[str] | None = None) -> Any:
        """The rows as a `datasets.Dataset` in the layout that SAELens reads: contexts of `context_size` rows.

        A column per activation [context_size, d], and `token_ids`. Contexts are cut from the sequence of all rows; the
        last rows are left out, with a warning, if they do not fill one. bfloat16, which Arrow lacks, becomes float32.

        Raises:
            ImportError: The package datasets is not installed.
        """
        datasets = require("datasets", "to_dataset")
        names = self.names if names is None else [names] if isinstance(names, str) else list(names)
        context_size = positive("context_size", context_size)
        example = {name: column[0] for name, column in self._chosen(self[:1], names).items()}
        n_contexts, rest = divmod(len(self), context_size)
        if not n_contexts:
            raise ValueError(f"there are {len(self)} rows; a context needs {context_size}")
        if rest:
            warnings.warn(f"the last {rest} rows do not fill a context and are left out", UserWarning, stacklevel=2)
        features: dict[str, Any] = {
            name: datasets.Array2D((context_size, math.prod(example[name].shape)), _arrow_dtype(example[name].dtype))
            for name in names
        }
        features["token_ids"] = datasets.Sequence(datasets.Value("int32"), context_size)

        def contexts(files: str) -> Iterator[dict[str, Any]]:
            for number in range(n_contexts):
                rows = self[number * context_size : (number + 1) * context_size]
                values = {name: rows[name].reshape(context_size, -1) for name in names}
                yield {n: value.astype(_arrow_dtype(value.dtype)) for n, value in values.items()} | {
                    "token_ids": rows["tokens"]
                }

        # datasets keeps what a function generates on disk, and finds it by its arguments: another harvest has others
        files = {"files": " ".join(self._fingerprint(file) for file in range(len(self._starts) - 1))}
        return datasets.Dataset.from_generator(contexts, features=datasets.Features(features), gen_kwargs=files)


def _arrow_dtype(dtype: np.dtype) -> str:
    return dtype.name if dtype.name in ("float16", "float32", "float64") else "float32"


def _in_batches(blocks: Iterator[Rows], size: int) -> Iterator[Rows]:
    """The rows of consecutive blocks in batches of `size`, the last of which may be smaller."""
    kept: list[Rows] = []
    n = 0
    for block in blocks:
        kept.append(block)
        n += len(block[next(iter(block))])
        if n < size:
            continue
        joined = {name: np.concatenate([rows[name] for rows in kept]) for name in block}
        for first in range(0, n - n % size, size):
            yield {name: column[first : first + size] for name, column in joined.items()}
        kept, n = [{name: column[n - n % size :] for name, column in joined.items()}], n % size
    if n:
        yield {name: np.concatenate([rows[name] for rows in kept]) for name in kept[0]}


def _check(name: str, number: Any, otherwise: str = "") -> None:
    """Raises ValueError if a number is not an integer of at least 0. False and True are not numbers here."""
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 0:
        raise ValueError(f"{name} is {number!r}; expected an integer of at least 0{otherwise}")


class Harvest(TokenRows):
    """The rows that `harvest` wrote to a folder. `index` is what `index.json` holds.

    If the harvest is not complete, `is_complete` is False, and the rows are those of the shards before the first one
    that is missing.

    Raises:
        HarvestError: The folder holds no harvest, or a shard is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        index = index_file.read_index(self.folder)
        if index is None:
            raise HarvestError(f"{self.folder} holds no harvest: there is no index.json in it")
        self.index: dict[str, Any] = index
        self.is_complete = "shards" in index
        self.shards: list[ShardInfo] = index_file.shards_of(self.folder, index) if self.is_complete else self._found()
        super().__init__([shard.rows for shard in self.shards])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)  # files are opened again, in another process too

    def _fingerprint(self, file: int) -> str:
        return self.shards[file].sha256

    def _found(self) -> list[ShardInfo]:
        paths = (self.folder / SHARD.format(number) for number in itertools.count())
        return [read_info(path) for path in itertools.takewhile(Path.exists, paths)]

    def _open(self, file: int) -> Mapping[str, np.ndarray]:
        if file >= len(self.shards):
            raise HarvestError(f"{self.folder} has no complete shard yet; continue the harvest")
        shard = self.shards[file]
        columns = read_columns(self.folder / shard.file)
        n_rows = len(columns["document"])
        if n_rows != shard.rows:
            raise HarvestError(f"{shard.file} has {n_rows} rows, but index.json was changed and says {shard.rows}")
        for name, shape in self.index["shapes"].items():
            found = columns[name].shape[1:] if name in columns else None
            if found != tuple(shape):
                raise HarvestError(f"{shard.file} has {name} {found}, but index.json was changed and says {shape}")
        return columns

    @property
    def names(self) -> list[str]:
        """The names of the activations."""
        return list(self.index["shapes"])

    def document(self, number: int) -> Rows:
        """The rows of a document. Raises IndexError if the harvest has no such document."""
        number = operator.index(number)
        for file, shard in enumerate(self.shards):
            if shard.first <= number < shard.stop:
                documents = self._columns(file)["document"]
                first, stop = np.searchsorted(documents, [number, number + 1]) + self._starts[file]
                return self._read(slice(int(first), int(stop)))
        raise IndexError(f"there is no document {number}; the harvest has {self.n_documents}")

    @property
    def n_documents(self) -> int:
        return self.shards[-1].stop if self.shards else 0

    def verify(self) -> list[str]:
        """What is wrong with the files: an empty list, or a sentence for each problem. Reads all of them."""
        problems = [] if self.is_complete else [f"the harvest is not complete; it has {len(self.shards)} shards so far"]
        for shard in self.shards:
            try:
                info = read_info(self.folder / shard.file)
                found = checksum(self.folder / shard.file)
            except HarvestError as error:
                problems.append(str(error))
                continue
            if info != shard or found != shard.sha256:
                problems.append(f"{shard.file} does not have the values that were written; delete it and continue")
        return problems

    def __repr__(self) -> str:
        names = ", ".join(f"{name} {shape}" for name, shape in self.index["shapes"].items())
        state = f"{len(self.shards)} shards" + ("" if self.is_complete else " so far")
        return f"Harvest({len(self):,} rows of {self.index['dtype']} in {state}: {names})"


class HiddenStates(TokenRows):
    """The hidden states that vLLM wrote to a folder, as rows: a file per request, in the order of their names.

    A file holds `hidden_states` [r l d] and `token_ids` [r]. Rows have `hidden_states` [l d]; a request is a document.

    Raises:
        HarvestError: The folder has no such file, or one is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self.paths = sorted(self.folder.glob("*.safetensors"))
        if not self.paths:
            raise HarvestError(f"{folder} holds no safetensors file")
        super().__init__([len(self._tensors(path)["token_ids"]) for path in self.paths])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)

    def _fingerprint(self, file: int) -> str:
        stat = self.paths[file].stat()
        return f"{self.paths[file].resolve()} {stat.st_size} {stat.st_mtime_ns}"

    def _tensors(self, path: Path) -> Mapping[str, np.ndarray]:
        tensors = read_columns(path)
        if missing := {"hidden_states", "token_ids"} - set(tensors):
            raise HarvestError(f"{path} has no {' and no '.join(sorted(missing))}, so vLLM did not write it")
        return tensors

    def _open(self, file: int) -> Mapping[str, np.ndarray]:
        tensors = self._tensors(self.paths[file])
        tokens = tensors["token_ids"].astype(np.int32)
        where = {"document": np.full(len(tokens), file), "tokens": tokens, "position": np.arange(len(tokens))}
        return {**where, "hidden_states": tensors["hidden_states"]}
