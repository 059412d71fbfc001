"""Arguments of TransformerLens that have one meaning here: they may be given with that value, and with no other."""

from collections.abc import Mapping
from typing import Any

CHECKPOINTS = "training checkpoints are revisions of a Hugging Face repository: give revision=..."
SHARDED = "a sharding spreads weights over devices: jax.device_put(model, sharding)"

MAKING = {"move_to_device": (True, "arrays lie on JAX's default device; see jax.default_device")}
LOADING = {
    "checkpoint_index": (None, CHECKPOINTS), "checkpoint_value": (None, CHECKPOINTS),
    "checkpoint_label": (None, CHECKPOINTS), "n_devices": (1, SHARDED), "move_to_device": (True, "give device=..."),
    "trust_remote_code": (False, "no code of a checkpoint is ever run"), "load_in_4bit": (False, "there is no 4-bit"),
}  # fmt: skip
"""The value that an argument may have, and what to do instead of asking for another."""


def only_as(given: Mapping[str, Any], known: Mapping[str, tuple[Any, str]]) -> None:
    """
    Raises:
        TypeError: there is no such argument.
        ValueError: it asks for what jaxlens does not do, or does otherwise.
    """
    for name, value in given.items():
        if name not in known:
            raise TypeError(f"there is no argument {name!r}")
        wanted, instead = known[name]
        if value != wanted:
            raise ValueError(f"{name}={value!r} is not done here, only {wanted!r}: {instead}")
