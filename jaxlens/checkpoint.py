"""jaxlens's own folder: config.json and safetensors with TransformerLens's names, one tensor per layer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxlens.config import Config
from jaxlens.convert import Loaded
from jaxlens.convert import load as load_checkpoint
from jaxlens.convert.exporting import ExportedTensors
from jaxlens.convert.families import own
from jaxlens.convert.files import read_json, write_json, write_tensors, written_whole
from jaxlens.errors import CheckpointError


def save(
    folder: str | Path,
    cfg: Config,
    params: Mapping[str, jax.Array],
    tokenizer: Any = None,
    source: Mapping[str, Any] | None = None,
    *,
    shard_bytes: int = 5 * 10**9,
) -> Path:
    """Writes a model, trained or processed in whatever way, such that `load` gives it back bit for bit.

    `source` is the config.json that a later export is written with (`Loaded.source`). The folder appears only once
    it is complete; one that `save` wrote before is replaced.

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
    with written_whole(folder, replaces=_is_own) as partial:
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


def _is_own(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("model_type") == own.MODEL_TYPE
