"""TransformerLens's `hook_points`: hook points, and the base class of models whose activations can be hooked."""

from collections.abc import Callable
from typing import Any

from jaxlens.hooks.plan import Direction
from jaxlens.hooks.point import HookPoint, LensHandle
from jaxlens.hooks.root_module import HookedRootModule, NamesFilter
from jaxlens.transformer_lens.absent import no_attribute

__all__ = ["DeviceType", "Direction", "HookFunction", "HookPoint", "HookedRootModule", "LensHandle", "NamesFilter"]

HookFunction = Callable[..., Any]
"""A function (value, hook) that returns the new value or None."""

DeviceType = Any
"""A device: its name, a `jax.Device`, or None."""


def __getattr__(name: str) -> Any:
    raise no_attribute(f"hook_points.{name}")
