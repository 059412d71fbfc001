"""jaxlens's own folder: config.json and safetensors with TransformerLens's names, one tensor per layer.

And other people's checkpoints into such a folder and back, with memory for a tensor.
"""

import fnmatch
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxlens.config import Config
from jaxlens.convert import Loaded, export, load_lazily
from jaxlens.convert import load as load_checkpoint
from jaxlens.convert.exporting import ExportedTensors
from jaxlens.convert.families import own
from jaxlens.convert.files import check_free, read_json, write_json, write_tensors, written_whole
from jaxlens.convert.hub import WANTED
from jaxlens.convert.loading import StoredParameter
from jaxlens.convert.opening import naming
from jaxlens.errors import CheckpointError
from jaxlens.weights import Processing, process_weights


def save(
    folder: str | Path,
    cfg: Config,
    params: Mapping[str, jax.Array | StoredParameter],
    tokenizer: Any = None,
    source: Mapping[str, Any] | None = None,
    *,
    shard_bytes: int = 5 * 10**9,
) -> Path:
    """Writes a model, trained or processed in whatever way, such that `load` gives it back bit for bit.

    `source` is the config.json that a later export is written with (`Loaded.source`). The folder appears only once
    it is complete; one that `save` wrote before is replaced, unless it holds something else by now.

    Example:
        >>> import tempfile
        >>> from jaxlens.parameters import init_parameters
        >>> cfg = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save(folder + "/model", cfg, init_parameters(cfg))
        ...     load(path).cfg == cfg
        True

    Raises:
        CheckpointError: `params` are not those of a model of `cfg`.
        FileExistsError: `folder` exists and holds something else.
    """
    folder = Path(folder)
    with written_whole(folder, replaces=_is_replaceable) as partial:
        write_json(partial / "config.json", own.fields(cfg, None if source is None else dict(source)))
        write_tensors(partial, ExportedTensors(own.FAMILY, cfg, params), shard_bytes)
        if tokenizer is not None:
            tokenizer.save(partial)
    return folder


def load(folder: str | Path) -> Loaded:
    """What `save` wrote, in the number type it was saved in."""
    if not _is_own(Path(folder)):
        raise CheckpointError(f"{folder} is not a folder that jaxlens wrote; jaxlens.convert.load reads the others")
    return load_checkpoint(folder, dtype=None)


def convert(
    name_or_path: str | os.PathLike[str], folder: str | Path, *, dtype: Any = None, process: bool = False,
    revision: str | None = None, shard_bytes: int = 5 * 10**9,
) -> tuple[Processing, ...]:  # fmt: skip
    """Writes a checkpoint of any kind (see `jaxlens.convert.load`) as a folder of jaxlens's own.

    It is what `save` writes of what `load` loads, tensor by tensor: no more than one is in memory. With `process`, all
    of the weights are, processed as `from_pretrained` does; what became of each pass is returned.

    Raises:
        CheckpointError: the checkpoint cannot be found, read or understood; nothing is written.
        FileExistsError: `folder` exists and holds something else.
    """
    check_free(Path(folder), replaces=_is_replaceable)
    if process:
        loaded = load_checkpoint(name_or_path, dtype=dtype, revision=revision)
        params, cfg, report = process_weights(loaded.params, loaded.cfg, donate=True)
    else:
        loaded = load_lazily(name_or_path, dtype=dtype, revision=revision)
        params, cfg, report = loaded.params, loaded.cfg, ()
    save(folder, cfg, params, loaded.tokenizer, loaded.source, shard_bytes=shard_bytes)
    return report


def convert_back(
    name_or_path: str | os.PathLike[str], folder: str | Path, *, dtype: Any = None,
    source: Mapping[str, Any] | None = None, shard_bytes: int = 5 * 10**9,
) -> Path:  # fmt: skip
    """Writes a folder of jaxlens's own, or any other checkpoint, as Hugging Face's transformers reads it.

    Tensor by tensor, as `convert`; with `source`, as a model of this config.json instead of the one it came with.

    Raises:
        CheckpointError: as `jaxlens.convert.export`; nothing is written.
        FileExistsError: `folder` exists and is not empty.
    """
    check_free(Path(folder))
    loaded = load_lazily(name_or_path, dtype=dtype)
    with naming(loaded.name):
        return export(
            folder, loaded.cfg, loaded.params, loaded.source if source is None else source,
            tokenizer=loaded.tokenizer, shard_bytes=shard_bytes,
        )  # fmt: skip


def _is_own(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("model_type") == own.MODEL_TYPE


def _is_replaceable(folder: Path) -> bool:
    """Whether `save` wrote a folder, and nobody has put files of another kind, or folders, into it."""

    def is_ours(entry: Path) -> bool:
        return entry.is_file() and any(fnmatch.fnmatch(entry.name, pattern) for pattern in (*WANTED, ".*"))

    return _is_own(folder) and all(map(is_ours, folder.iterdir()))
