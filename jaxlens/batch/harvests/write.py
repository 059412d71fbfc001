"""Harvests: the activations of every token of a data set, written as shards, or streamed."""

import concurrent.futures
import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxlens.batch.background import made_ahead
from jaxlens.batch.contexts import Reader, positive
from jaxlens.batch.harvests import index as index_file
from jaxlens.batch.harvests.read import Harvest
from jaxlens.batch.harvests.shard_file import NAMES, SHARD, HarvestError, ShardInfo, read_info, write_shard
from jaxlens.batch.harvests.work import Work, first_documents, spans_processes
from jaxlens.batch.per_token import Skip, TokenActivations, activations_program, check_skip, token_names
from jaxlens.batch.sources import Source
from jaxlens.batch.stream import BATCH_TOKENS, progress_bar
from jaxlens.hooks.names import HookName
from jaxlens.hooks.plan import HookSpec
from jaxlens.model.transformer import HookedTransformer

SHARD_TOKENS = 1 << 17
N_ESTIMATED = 256
"""The number of documents from which the size of a harvest is estimated."""


@overload
def harvest(
    model: HookedTransformer, data: Any, names: HookName | list[HookName], folder: str | os.PathLike[str],
    **options: Any,
) -> Harvest: ...  # fmt: skip
@overload
def harvest(
    model: HookedTransformer, data: Any, names: HookName | list[HookName], folder: None = None, **options: Any
) -> Iterator[dict[str, np.ndarray]]: ...
def harvest(
    model: HookedTransformer, data: Any, names: HookName | list[HookName], folder: str | os.PathLike[str] | None = None,
    *, dtype: Any = None, skip: Skip = "bos and padding", shard_tokens: int = SHARD_TOKENS,
    batch_tokens: int = BATCH_TOKENS, max_length: int | None = None, split: bool = True,
    hooks: Sequence[HookSpec] | None = None, column: str | None = None, prepend_bos: bool | None = None,
    progress: bool | None = None,
) -> "Harvest | Iterator[dict[str, np.ndarray]]":  # fmt: skip
    """Runs the model over a data set and stores the activations of its tokens, one row per token, in a folder.

    `data` and the arguments without a description here are those of `jaxlens.batch.run`. `names` selects activations
    with one value per token; layers after them do not run. They are cast to `dtype` (default: the model's). `skip`
    leaves out padding always, and "bos and padding" (default) BOS at the start of a context, "special tokens and
    padding" all special tokens, or a list of ids these tokens. A document of more than `max_length` tokens is `split`
    into several contexts, or else cut.

    The folder gets shards, `shard-00000.safetensors` and so on, and `index.json`. A shard holds whole documents with at
    least `shard_tokens` rows (the last one: the rest): a tensor per name [row, …], and the columns `document`,
    `tokens`, `position` (in the context) and `part` (the context in its document). Rows have the order of the data.

    A call with the same arguments continues where an earlier one stopped, whatever stopped it: shards are renamed into
    place when they are complete, and what they hold does not depend on interruptions, or on batch sizes and devices
    except by rounding. An iterator given as `data` must then begin from its start again. If several processes run the
    same call (`jax.distributed.initialize()`, a common folder), each writes its share of the shards, and the last one
    to finish completes the index.

    Without a folder, the rows are yielded shard by shard and nothing is written: `for rows in harvest(…):`.

    Raises:
        HarvestError: The folder holds a harvest with other arguments or a damaged shard, or is a file.
        HookError: A name matches nothing, or has no value per token.
        OSError: The disk has less room than the harvest is estimated to need, or is full. Complete shards are kept.
        ValueError: The data has no token to store, or an argument has a value that it cannot have.

    Example:
        >>> import jaxlens, tempfile
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> folder = tempfile.mkdtemp()
        >>> rows = harvest(model, [[1, 2], [3, 4, 5]], "blocks.0.hook_resid_post", folder)
        >>> len(rows), rows[3]["tokens"].item(), rows[1:]["blocks.0.hook_resid_post"].shape
        (5, 4, (4, 8))
    """
    check_skip(skip)
    shard_tokens, batch_tokens = positive("shard_tokens", shard_tokens), positive("batch_tokens", batch_tokens)
    reader = Reader(model, max_length, prepend_bos, split)
    dtype = _floating(model.cfg.dtype if dtype is None else dtype)
    activations = TokenActivations(token_names(model.cfg, names), dtype.name)
    program = activations_program(model, activations, hooks)
    source = Source.of(data, column)
    work = Work(
        program, _shapes(program, activations), dtype, source, reader, skip, model.tokenizer, shard_tokens, batch_tokens
    )
    if folder is None:
        return _streamed(work, progress)
    can_be_read_twice = not isinstance(data, Iterator)
    with program.axes():
        index = index_file.make_index(program.model, work, program.model._hooks, can_be_read_twice)
    return _Writer(Path(folder), work, index, estimates=can_be_read_twice).run(progress)


def _floating(dtype: Any) -> np.dtype:
    """A dtype of activations. Raises ValueError if it is not one, or if JAX would not compute in it."""
    try:
        found = jnp.dtype(str(dtype).removeprefix("torch.") if str(dtype).startswith("torch.") else dtype)
    except TypeError:
        found = None
    if found not in NAMES or not jnp.issubdtype(found, jnp.floating) or jax.dtypes.canonicalize_dtype(found) != found:
        expected = 'a floating dtype such as "float32", "bfloat16" or "float16" ("float64" needs jax_enable_x64)'
        raise ValueError(f"dtype is {dtype!r}; expected {expected}")
    return found


def _shapes(program: Any, activations: TokenActivations) -> dict[str, tuple[int, ...]]:
    """The shape of a row by name."""
    shapes = jax.eval_shape(program, np.zeros((1, 2), np.int32), np.ones((1, 2), bool))
    return {name: shapes[name].shape[2:] for name in activations.names}


def _streamed(work: Work, progress: bool | None) -> Iterator[dict[str, np.ndarray]]:
    with progress_bar(progress, None, "tokens") as bar, _tokenized_ahead(work) as parts:
        for part in parts:
            yield part.columns(work, bar.update)


def _tokenized_ahead(work: Work, start: int = 0) -> contextlib.closing:
    """The parts from document `start` on, made in the background while others run: one for each process."""
    return contextlib.closing(made_ahead(work.parts(start), jax.process_count()))


class _Writer:
    """Writes the shards of a harvest that are missing in a folder."""

    def __init__(self, folder: Path, work: Work, index: Mapping[str, Any], estimates: bool):
        self._folder, self._work, self._index, self._estimates = folder, work, index, estimates
        self._together = spans_processes(work.program.model)  # then all processes run all batches

    def run(self, progress: bool | None) -> Harvest:
        with _only_writer(self._folder):
            self._prepare()
            number, start, done = self._first_missing()
            total = self._estimated_rows(done)
            with progress_bar(progress, total, "tokens", done) as bar:
                shards = self._write_missing(number, start, bar)
            found = [self._info(number) for number in range(shards)]
            if all(found):
                self._complete(found)
            if self._together:
                multihost_utils.sync_global_devices("the harvest is complete")
        return Harvest(self._folder)

    def _prepare(self) -> None:
        """Checks or writes the index. One that a call left without a shard, such as a call that failed, is replaced."""
        has_files = any(not path.name.startswith(".") for path in self._folder.iterdir())
        found = index_file.read_index(self._folder)  # after the list of files: other processes write an index first
        has_shards = any(self._folder.glob("shard-*.safetensors"))
        if found is not None and (has_shards or jax.process_count() > 1):
            index_file.check_same(self._folder, self._index, found)
        elif found is None and has_files:
            raise HarvestError(f"{self._folder} holds other files and no index.json; choose another folder")
        elif found != self._index:
            index_file.write_index(self._folder, self._index)

    def _complete(self, shards: list[ShardInfo]) -> None:
        """Writes the index of the complete harvest, unless it is there: the folder may be read-only now."""
        index = index_file.complete(self._index, shards)
        if index != index_file.read_index(self._folder):
            index_file.write_index(self._folder, index)

    def _first_missing(self) -> tuple[int, int, int]:
        """The number of the first missing shard, its first document, and the number of rows before it."""
        number, start, rows = 0, 0, 0
        while info := self._info(number):
            self._check(info, start)
            number, start, rows = number + 1, info.stop, rows + info.rows
        return number, start, rows

    def _info(self, number: int) -> ShardInfo | None:
        """What the header of a shard says, or None if it is missing. The first process decides if all run together."""
        path = self._folder / SHARD.format(number)
        exists = path.exists()
        if self._together:
            exists = bool(multihost_utils.broadcast_one_to_all(np.int32(exists)))
        return read_info(path) if exists else None

    def _check(self, info: ShardInfo, start: int) -> None:
        if info.first != start:
            found = f"{self._folder / info.file} begins with document {info.first}; expected {start}"
            raise HarvestError(f"{found}: the shards belong to other data, so choose another folder")

    def _write_missing(self, number: int, start: int, bar: Any) -> int:
        """Writes the shards from `number` on that are missing and not those of other processes. Returns how many there
        are in all.
        """
        n_processes = 1 if self._together else jax.process_count()
        with _in_background() as write, _tokenized_ahead(self._work, start) as parts:
            for part in parts:
                if info := self._info(number):
                    self._check(info, part.first)
                elif number % n_processes == jax.process_index() % n_processes:
                    columns = part.columns(self._work, bar.update)
                    bar.set_postfix_str(f"{self._work.row_bytes * bar.n / 1e9:.2f} GB")
                    if not self._together or jax.process_index() == 0:
                        write(write_shard, self._folder, number, part.first, part.stop, columns)
                number += 1
        if not number:
            raise ValueError("no token of the data is stored; give data with tokens that `skip` does not leave out")
        return number

    def _estimated_rows(self, done: int) -> int | None:
        """The number of rows of the whole harvest, estimated from its first documents.

        Raises:
            OSError: The disk has less room than the rest needs.
        """
        source = self._work.source
        if not self._estimates or (source.size is None and source.n_bytes is None):
            return None
        total = _estimate(self._work)
        needed = max(0, total - done) * self._work.row_bytes
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            sizes = f"about {total:,} tokens of {self._work.row_bytes:,} bytes each need {needed / 1e9:.2f} GB more"
            advice = "free some, or store fewer names, a smaller dtype or less data"
            raise OSError(f"{sizes}, but {self._folder} has {free / 1e9:.2f} GB free; {advice}")
        return total


def _estimate(work: Work) -> int:
    """The number of rows, from the first documents and the size of the data."""
    source = work.source
    documents = first_documents(work, N_ESTIMATED)
    rows = sum(int(work.kept(context).sum()) for contexts in documents for context in contexts)
    if len(documents) < N_ESTIMATED:
        return rows
    if source.size is not None:
        return rows * source.size // len(documents)
    texts = (text for text, _ in zip(source.read(0), documents, strict=False))
    n_bytes = sum(len(text.encode()) if isinstance(text, str) else 6 * len(text) for text in texts)
    return rows * source.n_bytes // max(1, n_bytes)


@contextlib.contextmanager
def _in_background() -> Iterator[Any]:
    """A function that runs another one in a thread. It waits for the call before, and raises its error."""
    pending: list[concurrent.futures.Future] = []
    with concurrent.futures.ThreadPoolExecutor(1, "jaxlens-writer") as executor:

        def run(function: Any, *arguments: Any) -> None:
            if pending:
                pending.pop().result()
            pending.append(executor.submit(function, *arguments))

        yield run
        if pending:
            pending.pop().result()


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Holds the folder while this process writes to it. Processes of one distributed run share it.

    Raises:
        HarvestError: Another process writes to the folder, or its path is that of a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise HarvestError(f"{folder} is a file, or in one; choose the path of a folder") from None
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        shared = jax.process_count() > 1
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise HarvestError(f"another process writes to {folder}; wait for it, or choose another folder") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(descriptor)
