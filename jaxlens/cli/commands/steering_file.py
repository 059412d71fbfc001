"""The file of `jaxlens generate --steer`: a direction, and where it is added."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxlens.model.transformer import HookedTransformer

FIELDS = ("direction", "layers", "strength", "positions")
"""The fields of a JSON file, which are arguments of `jaxlens.steer`."""


def read_steering(path: Path, layers: list[int] | None, strength: float | None) -> dict[str, Any]:
    """The arguments of `jaxlens.steer` in a file. `layers` and `strength` replace those of the file, unless None.

    Raises:
        ValueError: The file is not one of the three kinds, or it has no layers and none are given.
    """
    if path.suffix not in READERS:
        raise ValueError(f"--steer is {str(path)!r}; expected a .npy, .safetensors or .json file")
    try:
        steering = READERS[path.suffix](path)
        steering["direction"] = np.asarray(steering.get("direction"), np.float32)
    except (ValueError, TypeError, EOFError, SafetensorError) as error:
        raise ValueError(f"{path} has no direction that can be read: {error}") from error
    given = {"layers": layers, "strength": strength}
    steering |= {name: value for name, value in given.items() if value is not None}
    if "layers" not in steering:
        raise ValueError(f"{path} names no layers; pass them, such as --layers 5,6")
    if not _is_valid(steering):
        form = '{"direction": [numbers], "layers": [integers], "strength": number, "positions": text or [integers]}'
        raise ValueError(f"{path} has other fields than those of {form}")
    return steering


def check_direction(model: HookedTransformer, path: Path, direction: np.ndarray) -> None:
    """Raises ValueError unless the direction is a vector of the model's residual stream."""
    if direction.shape != (model.cfg.d_model,) or not np.isfinite(direction).all():
        got = f"has shape {direction.shape}" if direction.shape != (model.cfg.d_model,) else "is not finite"
        raise ValueError(f"the direction in {path} {got}; expected [d_model = {model.cfg.d_model}] finite numbers")


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="numpy") as file:
        names = list(file.keys())
        if len(names) != 1:
            raise ValueError(f"it has {len(names)} tensors; expected one")
        return {"direction": file.get_tensor(names[0])}


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".npy": lambda path: {"direction": np.load(path, allow_pickle=False)},
    ".safetensors": _read_safetensors,
    ".json": lambda path: dict(json.loads(path.read_text("utf-8"))),
}


def _is_valid(steering: dict[str, Any]) -> bool:
    """Whether the fields have the right types. `jaxlens.steer` checks their values."""
    layers, positions = steering["layers"], steering.get("positions", "all")
    return (
        set(steering) <= set(FIELDS)
        and (_is_integer(layers) or _are_integers(layers))
        and isinstance(steering.get("strength", 1), int | float)
        and (isinstance(positions, str) or _are_integers(positions))
    )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_integers(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_integer, values))
