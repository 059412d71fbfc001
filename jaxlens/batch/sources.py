"""The documents of a data set: texts or rows of tokens, from memory, from a file, or from any iterable."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.errors import require

COLUMNS = ("text", "tokens", "input_ids")
"""The columns that are read from rows with named columns, the first of them that a row has."""

DOCUMENTS_AT_ONCE = 256
"""The number of documents that are read from a Parquet file or a `datasets.Dataset` at a time."""

MAX_TOKEN = np.iinfo(np.int32).max

Document = str | Sequence[int] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Source:
    """Documents in order. `read(start)` iterates over them from a number on. `size` is their number, if it is known.

    An iterator can be read only once. `n_bytes` is the size of a text file, from which the number of documents that it
    holds can be estimated.
    """

    read: Callable[[int], Iterator[Document]]
    size: int | None = None
    n_bytes: int | None = None

    @classmethod
    def of(cls, data: Any, column: str | None = None) -> "Source":
        """The source of a `data` argument.

        It is a list of texts or rows of tokens, tokens [row, pos], a `datasets.Dataset`, the path of a `.jsonl`,
        `.parquet` or `.txt` file (a document per line), or any iterable of texts, rows of tokens, or rows with named
        columns. `column` names the column; by default it is "text", "tokens" or "input_ids".

        Raises:
            ValueError: The suffix of the file is unknown, a row has no such column, or a file holds other values.
            TypeError: `data` or a document in it has another type.
            FileNotFoundError: There is no such file.
        """
        if isinstance(data, Source):
            return data
        if isinstance(data, str | Path):
            return _file(Path(data), column)
        if isinstance(data, np.ndarray) or hasattr(data, "__array__"):
            data = np.asarray(data)
            if data.ndim == 1 and data.dtype.kind in "OTU":  # texts or rows, such as a column of pandas
                data = data.tolist()
            elif data.ndim != 2:
                raise TypeError(f"an array of data holds tokens [row, pos]; got shape {data.shape}")
        if not isinstance(data, Iterable):
            kinds = "a list of texts, token rows, a datasets.Dataset, the path of a file or an iterable"
            raise TypeError(f"data is a {type(data).__name__}; expected {kinds}")
        if not hasattr(data, "__getitem__") or not hasattr(data, "__len__") or isinstance(data, Mapping):
            if isinstance(data, Mapping):
                raise TypeError("data is a dict; pass the column of documents in it")
            return cls(lambda start: _documents(itertools.islice(data, start, None), start, column))
        return cls(lambda start: _documents(_rows(data, start), start, column), len(data))


def _rows(data: Any, start: int) -> Iterator[Any]:
    """The rows of a sequence. A `datasets.Dataset` is read in slices, which it gives as columns."""
    if not hasattr(data, "column_names"):
        yield from (data[i] for i in range(start, len(data)))
        return
    for first in range(start, len(data), DOCUMENTS_AT_ONCE):
        columns = dict(data[first : first + DOCUMENTS_AT_ONCE])  # also of a DataFrame, in the format of pandas
        yield from (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def _documents(rows: Iterable[Any], start: int, column: str | None) -> Iterator[Document]:
    for number, row in enumerate(rows, start):
        yield _document(row, column, f"document {number}")


def _checked(text: str, where: str) -> str:
    """A text. Raises ValueError if it is not valid Unicode, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"half of a surrogate pair, {text[error.start]!r}, at character {error.start}"
        raise ValueError(f'{where} has {found}; replace it, as text.encode(errors="replace").decode() does') from None
    return text


def _document(row: Any, column: str | None, where: str) -> Document:
    """The text or the tokens of a row."""
    if isinstance(row, Mapping):
        names = COLUMNS if column is None else (column,)
        found = next((name for name in names if name in row), None)
        if found is None:
            wanted = f'"{column}"' if column else 'column "text", "tokens" or "input_ids"'
            raise ValueError(f"{where} has no {wanted}, only {sorted(map(str, row))}; name its column with column=")
        row = row[found]
    elif column is not None:
        raise ValueError(f"{where} has no columns; leave out column={column!r}")
    if isinstance(row, str):
        return _checked(row, where)
    try:
        tokens = np.asarray(row) if isinstance(row, Sequence | np.ndarray) or hasattr(row, "__array__") else None
    except ValueError:  # lists of different lengths
        tokens = None
    if tokens is None or tokens.ndim != 1 or (tokens.size and not np.issubdtype(tokens.dtype, np.integer)):
        kind = repr(row)[:40] if tokens is None else f"an array of shape {tokens.shape} and dtype {tokens.dtype}"
        raise TypeError(f"{where} is {kind}; expected a text or a row of tokens (integers)")
    if tokens.size and (tokens.max() > MAX_TOKEN or tokens.min() < -MAX_TOKEN):
        raise ValueError(f"{where} has tokens from {tokens.min()} to {tokens.max()}; expected at most {MAX_TOKEN}")
    return tokens.astype(np.int32)


# --- files


def _file(path: Path, column: str | None) -> Source:
    readers = {".jsonl": _json_lines, ".parquet": _parquet, ".txt": _lines}
    if path.suffix not in readers:
        kinds = "the path of a .jsonl, .parquet or .txt file, or a list of texts"
        raise ValueError(f"data is {str(path)[:60]!r}; a string is a path: expected {kinds}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    size = _parquet_file(path).metadata.num_rows if path.suffix == ".parquet" else None
    n_bytes = None if size is not None else path.stat().st_size
    return Source(lambda start: readers[path.suffix](path, start, column), size, n_bytes)


def _document_of_file(row: Any, column: str | None, where: str) -> Document:
    """The text or the tokens of a row of a file. Here another type is a fault of the file, not of the caller."""
    try:
        return _document(row, column, where)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _text_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        try:
            yield from file
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from None


def _lines(path: Path, start: int, column: str | None) -> Iterator[str]:
    if column is not None:
        raise ValueError(f"{path} has no columns; leave out column={column!r}")
    lines = (line.rstrip("\n") for line in _text_lines(path))
    yield from itertools.islice((line for line in lines if line.strip()), start, None)


def _json_lines(path: Path, start: int, column: str | None) -> Iterator[Document]:
    lines = ((i, line) for i, line in enumerate(_text_lines(path), 1) if line.strip())
    for i, line in itertools.islice(lines, start, None):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {i}, is not JSON: {error}") from error
        yield _document_of_file(row, column, f"{path}, line {i},")


def _parquet(path: Path, start: int, column: str | None) -> Iterator[Document]:
    file, number = _parquet_file(path), 0
    names = file.schema_arrow.names
    wanted = [name for name in (COLUMNS if column is None else (column,)) if name in names][:1]
    for group in file.iter_batches(DOCUMENTS_AT_ONCE, columns=wanted or None):
        if number + group.num_rows > start:
            first = max(0, start - number)
            for i, row in enumerate(group.slice(first).to_pylist(), number + first):
                yield _document_of_file(row, column, f"{path}, row {i},")
        number += group.num_rows


def _parquet_file(path: Path) -> Any:
    require("pyarrow", "reading a .parquet file")
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error
