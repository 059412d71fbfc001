"""TransformerLens's `hook_points`: hook points and the methods that a model offers for them."""

from jaxlens.hooks import HookPoint
from jaxlens.model.hook_methods import HookMethods as HookedRootModule
from jaxlens.model.hook_methods import LensHandle

__all__ = ["HookPoint", "HookedRootModule", "LensHandle"]
