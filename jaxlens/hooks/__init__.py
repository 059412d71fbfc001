"""Hooks: the table of hook points, the names that select them, and the functions that run at them."""

from typing import TYPE_CHECKING, Any

from jaxlens.hooks.api import DataHook, hook
from jaxlens.hooks.names import get_act_name
from jaxlens.hooks.slice import Slice

if TYPE_CHECKING:
    from jaxlens.hooks.point import HookPoint

__all__ = ["DataHook", "HookPoint", "Slice", "get_act_name", "hook"]


def __getattr__(name: str) -> Any:
    if name == "HookPoint":  # imported when it is used, because it imports Flax
        from jaxlens.hooks.point import HookPoint

        return HookPoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
