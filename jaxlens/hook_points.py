"""TransformerLens's module of this name: hook points, from `jaxlens.hooks` and `jaxlens.hooked`."""

from jaxlens.hooked import HooksOnModel as HookedRootModule
from jaxlens.hooked import LensHandle
from jaxlens.hooks import HookPoint

__all__ = ["HookPoint", "HookedRootModule", "LensHandle"]
