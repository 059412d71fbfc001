"""`index.json` of a harvest: its arguments, by which a later call knows whether it continues the same one."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens._jax import on_host
from jaxlens.batch.fingerprint import fingerprint, sample
from jaxlens.batch.harvests.shard_file import HarvestError, ShardInfo, sync_folder
from jaxlens.batch.harvests.work import Work
from jaxlens.batch.sources import Source
from jaxlens.hooks.plan import RegisteredHook
from jaxlens.text.tokenizer_files import ROLES

INDEX = "index.json"
FORMAT = "jaxlens harvest 1"
N_COMPARED = 64
"""The number of documents that tell one data set from another."""


def make_index(model: Any, work: Work, hooks: Sequence[RegisteredHook], can_be_read_twice: bool) -> dict[str, Any]:
    """The arguments of a harvest, as `index.json` holds them. Batch sizes and devices are not among them."""
    tokenizer = model.tokenizer
    processing = [str(entry) for entry in model.processing if entry.name != "sharding"]
    skip = work.skip if isinstance(work.skip, str) else sorted(set(map(int, work.skip)))
    return {
        "format": FORMAT,
        "model": {
            "name": model.name,
            "revision": model.cfg.revision,
            "processing": processing,
            "weights": _of_weights(model),
        },
        "tokenizer": None if tokenizer is None else _of_tokenizer(tokenizer),
        "hooks": [_of_hook(hook) for hook in hooks],
        "data": {
            "documents": work.source.size,
            "bytes": work.source.n_bytes,
            "sha256": _of_data(work.source) if can_be_read_twice else None,
        },
        "dtype": work.dtype.name,
        "shapes": {name: list(shape) for name, shape in work.shapes.items()},
        "skip": skip,
        "max_length": work.reader.max_length,
        "split": work.reader.splits,
        "prepend_bos": work.reader.prepend_bos,
        "shard_tokens": work.shard_tokens,
    }


def complete(index: Mapping[str, Any], shards: Iterable[ShardInfo]) -> dict[str, Any]:
    """The index of a complete harvest, which lists its shards."""
    shards = list(shards)
    return {**index, "rows": sum(shard.rows for shard in shards), "shards": list(map(dataclasses.asdict, shards))}


def check_same(folder: Path, index: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises HarvestError if a folder belongs to a harvest with other arguments."""
    changed = [name for name in index if found.get(name) != index[name]]
    if not changed:
        return
    differences = "; ".join(
        f"{name} is {_short(found.get(name), index[name])} there, {_short(index[name], found.get(name))} here"
        for name in changed
    )
    advice = "choose another folder, or give the arguments of the harvest to continue it"
    raise HarvestError(f"{folder} holds a harvest with other arguments: {differences}; {advice}")


def _short(value: Any, other: Any) -> str:
    """A value for an error message: of dicts, the fields that differ."""
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        value = {name: value[name] for name in value if value[name] != other.get(name)}
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def read_index(folder: Path) -> dict[str, Any] | None:
    """The index of a folder, or None if there is none. Raises HarvestError if it cannot be read."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise HarvestError(f"{path} cannot be read: {error}") from error
    if not isinstance(index, dict) or not str(index.get("format")).startswith("jaxlens harvest"):
        raise HarvestError(f"{path} is not the index of a harvest")
    if index["format"] != FORMAT:
        raise HarvestError(f"{path} has the format {index['format']!r}; this version of jaxlens reads {FORMAT!r}")
    if not isinstance(index.get("shapes"), dict) or "dtype" not in index:
        raise HarvestError(f"{path} was changed: it lacks the shapes or the dtype of the activations")
    return index


def shards_of(folder: Path, index: Mapping[str, Any]) -> list[ShardInfo]:
    """The shards that the index of a complete harvest lists, at least one. Raises HarvestError if it was changed."""
    try:
        numbers = [{name: int(shard[name]) for name in ("rows", "first", "stop")} for shard in index["shards"]]
        shards = [ShardInfo(**{**shard, **of_shard}) for shard, of_shard in zip(index["shards"], numbers, strict=True)]
        rows = sum(shard.rows for shard in shards)
    except (TypeError, ValueError, KeyError) as error:
        raise HarvestError(f"{folder / INDEX} was changed: its shards cannot be read ({error})") from error
    if not shards or rows != index.get("rows"):
        found = f"it lists {len(shards)} shards with {rows} rows, and says {index.get('rows')} rows"
        raise HarvestError(f"{folder / INDEX} was changed: {found}; the same harvest writes it again")
    return shards


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    """Writes the index under another name, which no other process of a distributed run uses, and renames it."""
    partial = folder / f".{INDEX}.{jax.process_index()}.partial"
    partial.write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(folder / INDEX)
    sync_folder(folder)


# --- what tells models, tokenizers, hooks and data apart


def _of_weights(model: Any) -> str:
    """A hash of a few values of each parameter."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.params.items()):
        digest.update(f"{name} ".encode() + sample(parameter))
    return digest.hexdigest()


def _of_tokenizer(tokenizer: Any) -> str:
    backend = getattr(tokenizer.backend, "backend_tokenizer", tokenizer.backend)
    text = backend.to_str() if hasattr(backend, "to_str") else json.dumps(sorted(tokenizer.get_vocab().items()))
    special = [getattr(tokenizer, f"{role}_token") for role in ROLES]  # not the padding side, which changes no row
    return hashlib.sha256(f"{text}{tokenizer.default_prepend_bos}{special}".encode()).hexdigest()


def _of_hook(hook: RegisteredHook) -> dict[str, Any]:
    """The names and the function of a hook, and a hash of its data, its source and what the function reads."""
    function = getattr(hook.hook, "func", None) or getattr(hook.hook, "fn", hook.hook)
    digest = hashlib.sha256(fingerprint(function).encode())
    for leaf in jax.tree.leaves(hook):
        digest.update(on_host(jnp.asarray(leaf)).tobytes())
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return {"names": list(hook.names), "function": name, "sha256": digest.hexdigest()}


def _of_data(source: Source) -> str:
    digest = hashlib.sha256()
    for document in itertools.islice(source.read(0), N_COMPARED):
        values = document.encode() if isinstance(document, str) else np.asarray(document, np.int32).tobytes()
        digest.update(len(values).to_bytes(8, "little") + values)
    return digest.hexdigest()
