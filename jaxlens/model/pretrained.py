"""Loads the checkpoint of a name, or the weights of a transformers model, for `HookedTransformer.from_pretrained`."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh

from jaxlens._jax import as_device
from jaxlens.sharding import Rules, Sharding, default_mesh

if TYPE_CHECKING:
    from jaxlens.checkpoints import Loaded


def load_pretrained(
    model_name: str, hf_model: Any, *, tokenizer: Any, revision: str | None, training: Mapping[str, int | None],
    hub: Mapping[str, Any], **options: Any,
) -> "Loaded":  # fmt: skip
    """Loads a checkpoint with `jaxlens.checkpoints.load`, or `hf_model` with the tokenizer of `model_name`.

    `training` selects a training checkpoint, and `hub` are the arguments of huggingface_hub.
    """
    from jaxlens.checkpoints import load  # slow to import, and not needed for a model with random weights

    if hf_model is None:
        return load(model_name, tokenizer=tokenizer, revision=revision, **training, **hub, **options)
    if selected := [name for name, value in training.items() if value is not None]:
        raise ValueError(f"{selected[0]} and hf_model are given; expected one of them, because both select weights")

    from jaxlens.checkpoints.hub import tokenizer_named
    from jaxlens.checkpoints.published.names import official_name

    repository = official_name(model_name) or str(model_name)
    tokenizer = tokenizer_named(repository, revision, **hub) if tokenizer is None else tokenizer
    with tempfile.TemporaryDirectory() as folder:
        hf_model.save_pretrained(folder)
        loaded = load(folder, tokenizer=tokenizer, **options)
    cfg = loaded.cfg.replace(model_name=Path(repository).name or repository)
    return dataclasses.replace(loaded, name=model_name, cfg=cfg)


def sharding_of(mesh: Mesh | None, rules: Rules | None, device: Any, n_devices: int) -> Sharding | None:
    """The sharding that the arguments of a call ask for. `n_devices` is TransformerLens's: devices like `device`.

    Raises:
        ValueError: Two arguments say where the weights belong, or there are not so many devices.
    """
    if mesh is not None:
        others = {"device": (device, None), "n_devices": (n_devices, 1)}
        if given := [name for name, (value, default) in others.items() if value != default]:
            raise ValueError(f"mesh and {given[0]} are given; pass only the mesh, which says where the weights belong")
        return Sharding.of(mesh, rules)
    if n_devices == 1:
        if rules is not None:
            raise ValueError("rules are given without a mesh; pass mesh=jaxlens.sharding.default_mesh()")
        return None
    first = jax.devices()[0] if device is None else as_device(device)
    if not isinstance(first, jax.Device):
        raise ValueError(f"n_devices={n_devices!r} and device={device!r}; expected a kind of device, such as \"cuda\"")
    same = [other for other in jax.devices(first.platform) if other.id >= first.id]
    if not 1 <= n_devices <= len(same):
        raise ValueError(f"n_devices is {n_devices}; there are {len(same)} devices from {first} on")
    return Sharding.of(default_mesh(1, n_devices, devices=same[:n_devices]), rules)
