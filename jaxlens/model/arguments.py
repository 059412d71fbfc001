"""Arguments of TransformerLens that jaxlens accepts with a single value, for compatibility."""

from collections.abc import Mapping
from typing import Any

CHECKPOINTS = "training checkpoints are revisions of a Hugging Face repository; use revision=..."
SHARDED = "pass a dict of shardings by name: model.set_params(jax.device_put(model.params, shardings))"

MAKING = {"move_to_device": (True, "arrays are created on JAX's default device; use jax.default_device")}
LOADING = {
    "checkpoint_index": (None, CHECKPOINTS), "checkpoint_value": (None, CHECKPOINTS),
    "checkpoint_label": (None, CHECKPOINTS), "n_devices": (1, SHARDED), "move_to_device": (True, "use device=..."),
    "trust_remote_code": (False, "jaxlens never runs code from a checkpoint"),
    "load_in_4bit": (False, "jaxlens has no 4-bit weights"),
}  # fmt: skip
"""The value that each argument may have, and what to use instead of other values."""


def check_only(given: Mapping[str, Any], known: Mapping[str, tuple[Any, str]]) -> None:
    """Raises TypeError for an argument that is not in `known`, and ValueError for an unsupported value."""
    for name, value in given.items():
        if name not in known:
            raise TypeError(f"there is no argument {name!r}")
        expected, instead = known[name]
        if value != expected:
            raise ValueError(f"{name}={value!r} is not supported (only {expected!r}): {instead}")
