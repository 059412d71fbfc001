"""Arguments of TransformerLens that jaxlens accepts with a single value, for compatibility."""

from collections.abc import Mapping
from typing import Any

MAKING = {"move_to_device": (True, "arrays are created on JAX's default device; use jax.default_device")}
LOADING = {
    "move_to_device": (True, "use device=..."),
    "trust_remote_code": (False, "jaxlens never runs code from a checkpoint"),
    "load_in_4bit": (False, "jaxlens has no 4-bit weights"), "load_in_8bit": (False, "jaxlens has no 8-bit weights"),
}  # fmt: skip
RUNNING = {
    "shortformer_pos_embed": (None, "positions are embedded in the run; edit hook_pos_embed"),
}
GENERATING = {
    "stopping_criteria": (None, "use stop_strings=, eos_token_id=, or generate_stream"),
    "num_beams": (1, "jaxlens samples, and has no beam search"),
}
"""The value that each argument may have, and what to use instead of other values."""


METHODS = {
    **dict.fromkeys(("load_sample_training_dataset", "sample_datapoint"), "use jaxlens.utils.get_dataset"),
    "check_hooks_to_add": "a hook may be added at every hook point of hook_dict",
    "fill_missing_keys": "use load_state_dict(state_dict, strict=False)",
    "get_pos_offset": "a KV cache knows its `length` and the `n_tokens` of each row",
    "get_residual": "use input_to_embed(input).residual", "move_model_modules_to_device": "use to(device)",
    "mps": "JAX does not use torch's MPS backend", "setup": "hook points have their names from the start",
}  # fmt: skip
"""Methods of TransformerLens's HookedTransformer that jaxlens does not have, and what to use instead."""


def renamed(given: dict[str, Any], dtype: Any, checkpoint_value: int | None) -> tuple[Any, int | None]:
    """The dtype and the checkpoint_value of a call, which may be in `given` by their other names, and are removed."""
    value = given.pop("checkpoint_label", None)
    if value is not None and checkpoint_value is not None:
        both = f"checkpoint_label is {value!r} and checkpoint_value is {checkpoint_value!r}"
        raise ValueError(f"{both}; pass only checkpoint_value, because both have the same meaning")
    torch_dtype = given.pop("torch_dtype", None)
    return dtype if torch_dtype is None else torch_dtype, checkpoint_value if value is None else value


def check_only(given: Mapping[str, Any], known: Mapping[str, tuple[Any, str]]) -> None:
    """Raises TypeError for an argument that is not in `known`, and ValueError for an unsupported value."""
    for name, value in given.items():
        if name not in known:
            raise TypeError(f"there is no argument {name!r}")
        expected, instead = known[name]
        if value is not expected and value != expected:
            raise ValueError(f"{name}={value!r} is not supported (only {expected!r}): {instead}")
