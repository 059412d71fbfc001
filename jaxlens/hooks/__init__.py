"""Hooks: the table of hook points, the names that select them, and the functions that run at them."""

from jaxlens.hooks.api import DataHook, HookPoint, hook
from jaxlens.hooks.names import get_act_name
from jaxlens.hooks.slice import Slice

__all__ = ["DataHook", "HookPoint", "Slice", "get_act_name", "hook"]
