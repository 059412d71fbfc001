"""Saves models in jaxlens's native format, and converts checkpoints to it and back, one tensor at a time.

The native format is a folder with config.json and safetensors, with TransformerLens's names and one tensor per layer.
"""

import fnmatch
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxlens.checkpoints import native
from jaxlens.checkpoints.exporter import ExportedTensors, export
from jaxlens.checkpoints.folder_writer import (
    atomic_folder,
    require_free,
    write_generation_config,
    write_json,
    write_tensors,
)
from jaxlens.checkpoints.hub import FILE_PATTERNS
from jaxlens.checkpoints.loader import Loaded, load_lazily
from jaxlens.checkpoints.loader import load as load_checkpoint
from jaxlens.checkpoints.open import path_in_errors
from jaxlens.checkpoints.parameters import StoredParameter
from jaxlens.checkpoints.safetensors_reader import read_json
from jaxlens.config import Config
from jaxlens.errors import CheckpointError
from jaxlens.weights import Processing, process_weights


def save(
    folder: str | Path, cfg: Config, params: Mapping[str, jax.Array | StoredParameter], tokenizer: Any = None,
    source: Mapping[str, Any] | None = None, *, shard_bytes: int = 5 * 10**9,
) -> Path:  # fmt: skip
    """Writes a model in the native format. `load` returns the same parameters, bit for bit.

    `source` is the Hugging Face config.json for a later export (`Loaded.source`). The folder appears when it is
    complete. An existing folder is replaced if `save` wrote it and it contains no other files.

    Example:
        >>> import tempfile
        >>> from jaxlens.nn.parameters import init_parameters
        >>> cfg = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save(folder + "/model", cfg, init_parameters(cfg))
        ...     load(path).cfg == cfg
        True

    Raises:
        CheckpointError: `params` are not the parameters of a model of `cfg`.
        FileExistsError: `folder` exists and may not be replaced.
    """
    folder = Path(folder)
    with atomic_folder(folder, _may_replace) as partial:
        write_json(partial / "config.json", native.fields(cfg, None if source is None else dict(source)))
        write_tensors(partial, ExportedTensors(native.FAMILY, cfg, params), shard_bytes)
        write_generation_config(partial, cfg)
        if tokenizer is not None:
            tokenizer.save(partial)
    return folder


def load(folder: str | Path) -> Loaded:
    """Loads a folder that `save` wrote, in its stored dtype."""
    if not _is_native(Path(folder)):
        raise CheckpointError(f"{folder} is not in jaxlens's native format; use jaxlens.checkpoints.load")
    return load_checkpoint(folder, dtype=None)


def convert(
    name_or_path: str | os.PathLike[str], folder: str | Path, *, dtype: Any = None, process: bool = False,
    revision: str | None = None, shard_bytes: int = 5 * 10**9, adapter: str | os.PathLike[str] | None = None,
) -> tuple[Processing, ...]:  # fmt: skip
    """Writes a checkpoint of any format (see `jaxlens.checkpoints.load`) in the native format.

    The result equals `save` after `load`, but at most one tensor is in memory. With `process`, all weights are loaded
    and processed as by `HookedTransformer.from_pretrained`. The reports of the passes are returned. `adapter` is
    merged.

    Raises:
        CheckpointError: The checkpoint cannot be found or read. Nothing is written.
        FileExistsError: `folder` exists and may not be replaced.
    """
    require_free(Path(folder), _may_replace)
    if process:
        loaded = load_checkpoint(name_or_path, dtype=dtype, revision=revision, adapter=adapter)
        params, cfg, report = process_weights(loaded.params, loaded.cfg, consume=True)
    else:
        loaded = load_lazily(name_or_path, dtype=dtype, revision=revision, adapter=adapter)
        params, cfg, report = loaded.params, loaded.cfg, ()
    save(folder, cfg, params, loaded.tokenizer, loaded.source, shard_bytes=shard_bytes)
    return report


def convert_back(
    name_or_path: str | os.PathLike[str], folder: str | Path, *, dtype: Any = None,
    source: Mapping[str, Any] | None = None, shard_bytes: int = 5 * 10**9,
    adapter: str | os.PathLike[str] | None = None,
) -> Path:  # fmt: skip
    """Writes a native folder, or any other checkpoint, as a folder for Hugging Face's transformers.

    At most one tensor is in memory. `source` replaces the Hugging Face config.json of the checkpoint.
    `adapter` is merged.

    Raises:
        CheckpointError: As for `jaxlens.checkpoints.export`. Nothing is written.
        FileExistsError: `folder` exists and is not empty.
    """
    require_free(Path(folder))
    loaded = load_lazily(name_or_path, dtype=dtype, adapter=adapter)
    with path_in_errors(loaded.name):
        return export(
            folder, loaded.cfg, loaded.params, loaded.source if source is None else source,
            tokenizer=loaded.tokenizer, shard_bytes=shard_bytes,
        )  # fmt: skip


def _is_native(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("model_type") == native.MODEL_TYPE


def _may_replace(folder: Path) -> bool:
    """Whether `save` wrote a folder, and it contains only files that belong to a checkpoint."""

    def belongs(entry: Path) -> bool:
        return entry.is_file() and any(fnmatch.fnmatch(entry.name, pattern) for pattern in (*FILE_PATTERNS, ".*"))

    return _is_native(folder) and all(map(belongs, folder.iterdir()))
