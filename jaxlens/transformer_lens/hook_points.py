"""TransformerLens's `hook_points`: hook points, and the base class of models whose activations can be hooked."""

from jaxlens.hooks.plan import Direction
from jaxlens.hooks.point import HookPoint, LensHandle
from jaxlens.hooks.root_module import HookedRootModule, NamesFilter

__all__ = ["Direction", "HookPoint", "HookedRootModule", "LensHandle", "NamesFilter"]
