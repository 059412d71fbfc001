"""Methods of HookedTransformer: hooks that stay on a model between runs."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from jaxlens.config import Config
from jaxlens.hooks.api import NamedHookPoint
from jaxlens.hooks.names import HookName
from jaxlens.hooks.plan import Direction, HookPlan, HookSpec, RegisteredHook, hook_specs, register
from jaxlens.hooks.point import LensHandle, check_direction, handle_of, refuse_conversion
from jaxlens.hooks.root_module import HookedRootModule
from jaxlens.hooks.table import SWITCHES, sites


class Points(dict):
    """The HookPoints of a model by name. It is hashable and equal only to itself, because each point has a context."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def hook_points(cfg: Config, existing: Points | None = None) -> Points:
    """A NamedHookPoint for every hook point of the model. Those that exist already are kept, with their contexts."""
    existing = existing or {}
    return Points({name: existing.get(name) or NamedHookPoint(name) for name in sites(cfg)})


class ModelHookPoint(NamedHookPoint):
    """A hook point of a model, at which hooks can be added, listed and removed."""

    def __init__(self, model: "HookMethods", name: str):
        super().__init__(name)
        self._model, self.ctx = model, model._points[name].ctx

    def __repr__(self) -> str:
        return f"HookPoint({self.name!r})"

    fwd_hooks = property(lambda self: self._handles("fwd"), doc="The hooks on the activation.")
    bwd_hooks = property(lambda self: self._handles("bwd"), doc="The hooks on the gradient of the activation.")

    def _handles(self, dir: str) -> list[LensHandle]:
        return self._model.list_hooks(self.name, dir).get(self.name, [])

    def add_hook(
        self, hook: Callable, dir: Direction = "fwd", is_permanent: bool = False, level: int | None = None,
        prepend: bool = False,
    ) -> None:  # fmt: skip
        """Adds a hook to the model at this point."""
        self._model.add_hook(self.name, hook, dir, is_permanent, level, prepend)

    def add_perma_hook(self, hook: Callable, dir: Direction = "fwd") -> None:
        """Adds a hook that `reset_hooks` leaves in place."""
        self.add_hook(hook, dir, is_permanent=True)

    def has_hooks(self, dir: str = "both", including_permanent: bool = True, level: int | None = None) -> bool:
        """Whether a hook is on this point."""
        handles = self._model.list_hooks(self.name, dir, including_permanent).get(self.name, [])
        return any(level is None or handle.context_level == level for handle in handles)

    def remove_hooks(self, dir: str = "fwd", including_permanent: bool = False, level: int | None = None) -> None:
        """Removes hooks from this point. A hook that is also on other points stays there."""
        self._model._remove(dir, including_permanent, level, self.name)

    def clear_context(self) -> None:
        """Empties `ctx`."""
        self.ctx.clear()

    def enable_reshape(self, hook_conversion: Any = None) -> None:
        """TransformerLens's conversions of values before and after hooks, which jaxlens does not have."""
        refuse_conversion(hook_conversion)


def _is_selected(hook: RegisteredHook, direction: str, including_permanent: bool, level: int | None) -> bool:
    """Whether a hook has this direction and level, and may be permanent."""
    of_direction = direction in ("both", hook.direction)
    return of_direction and (including_permanent or not hook.permanent) and level in (None, hook.level)


class HookMethods:
    """Mixin of HookedTransformer: hooks that act in every run until they are removed.

    Hooks are part of the model's pytree, so a program that was compiled without them is not reused with them.
    """

    cfg: Config
    _hooks: tuple[RegisteredHook, ...]
    _points: Points
    _level: int

    @property
    def hook_dict(self) -> dict[str, NamedHookPoint]:
        """Every hook point by name, including those that are cached only on request."""
        return {name: ModelHookPoint(self, name) for name in self._points}

    def hook_points(self) -> list[NamedHookPoint]:
        """Every hook point, in firing order."""
        return list(self.hook_dict.values())

    def add_hook(
        self, name: HookName, hook: Callable, dir: Direction = "fwd", is_permanent: bool = False,
        level: int | None = None, prepend: bool = False,
    ) -> None:  # fmt: skip
        """Adds a hook that acts in every run: forward (`dir="fwd"`) or on gradients (`dir="bwd"`).

        A hook on gradients acts in backward passes. It has no effect on forward-mode derivatives (`jax.jvp`).

        Raises:
            HookError: `name` selects no hook point of this model.
        """
        level = self._level if level is None else level
        added = register(self.cfg, name, hook, dir, permanent=is_permanent, level=level)
        self._hooks = (added, *self._hooks) if prepend else (*self._hooks, added)

    def add_perma_hook(self, name: HookName, hook: Callable, dir: Direction = "fwd") -> None:
        """Adds a hook that `reset_hooks` leaves in place."""
        self.add_hook(name, hook, dir, is_permanent=True)

    def reset_hooks(
        self, clear_contexts: bool = True, direction: str = "both", including_permanent: bool = False,
        level: int | None = None,
    ) -> None:  # fmt: skip
        """Removes hooks: all, those of one direction, or those of one level of nested `hooks(...)` blocks.

        Raises:
            HookError: There is no such direction.
        """
        self._remove(direction, including_permanent, level)
        if clear_contexts:
            self.clear_contexts()

    def remove_all_hook_fns(
        self, direction: str = "both", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """`reset_hooks` without clearing contexts."""
        self.reset_hooks(False, direction, including_permanent, level)

    def clear_contexts(self) -> None:
        """Empties the `ctx` of every hook point."""
        for point in self._points.values():
            point.ctx.clear()

    def _remove(self, direction: str, including_permanent: bool, level: int | None, name: str | None = None) -> None:
        """Removes hooks from the model, or from one hook point."""
        check_direction(direction)
        kept = []
        for hook in self._hooks:
            if _is_selected(hook, direction, including_permanent, level):
                names = () if name is None else tuple(other for other in hook.names if other != name)
                hook = dataclasses.replace(hook, names=names)
            kept.append(hook)
        self._hooks = tuple(hook for hook in kept if hook.names)

    def list_hooks(
        self, name_filter: HookName | Collection[str] | None = None, dir: str = "both", including_permanent: bool = True
    ) -> dict[str, list[LensHandle]]:
        """The hooks on each hook point that has any, or on those that `name_filter` selects.

        Raises:
            HookError: There is no such direction.
        """
        check_direction(dir)
        if isinstance(name_filter, str):
            name_filter = (name_filter,)
        selects = name_filter if callable(name_filter) else lambda name: name_filter is None or name in name_filter
        handles: dict[str, list[LensHandle]] = {}
        for hook in self._hooks:
            if _is_selected(hook, dir, including_permanent, None):
                for name in filter(selects, hook.names):
                    handles.setdefault(name, []).append(handle_of(hook))
        return handles

    @contextlib.contextmanager
    def hooks(
        self, fwd_hooks: Sequence[HookSpec] | None = None, bwd_hooks: Sequence[HookSpec] | None = None,
        reset_hooks_end: bool = True, clear_contexts: bool = False,
    ) -> Iterator["HookMethods"]:  # fmt: skip
        """Adds hooks for the duration of a `with` block. Blocks may be nested; each removes only the hooks it added.

        Example:
            >>> import jaxlens
            >>> model = jaxlens.HookedTransformer(jaxlens.Config(
            ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8, attn_only=True))
            >>> with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: z * 0)]):
            ...     logits = model([[1, 2, 3]])
        """
        before = {id(hook): hook for hook in self._hooks}  # by identity: the same function may be added again
        self._level += 1
        try:
            for name, hook in hook_specs(fwd_hooks):
                self.add_hook(name, hook, "fwd")
            for name, hook in hook_specs(bwd_hooks):
                self.add_hook(name, hook, "bwd")
            yield self
        finally:
            if reset_hooks_end:
                self._hooks = tuple(h for h in self._hooks if id(h) in before or h.permanent or h.level != self._level)
                if clear_contexts:
                    self.clear_contexts()
            self._level -= 1

    def hook_plan(self) -> HookPlan:
        """The plan of a run with the model's hooks, which captures nothing."""
        return HookPlan.of(self.cfg, self._hooks, points=self._points)

    @property
    def has_python_hooks(self) -> bool:
        """Whether a plain Python function is among the model's hooks."""
        return any(hook.is_plain for hook in self._hooks)

    # --- what an unfiltered cache contains

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Whether unfiltered caches contain `hook_result`, what each head writes."""
        self._switch("use_attn_result", use_attn_result)

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Whether unfiltered caches contain `hook_q_input`, `hook_k_input` and `hook_v_input`."""
        self._switch("use_split_qkv_input", use_split_qkv_input)

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """Whether unfiltered caches contain `hook_mlp_in`."""
        self._switch("use_hook_mlp_in", use_hook_mlp_in)

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """Whether unfiltered caches contain `hook_attn_in`, which exists if every head has its own keys."""
        self._switch("use_attn_in", use_attn_in)

    def set_use_hook_tokens(self, use_hook_tokens: bool) -> None:
        """Whether unfiltered caches contain `hook_tokens`, the tokens that are embedded."""
        self._switch("use_hook_tokens", use_hook_tokens)

    def _switch(self, switch: str, on: bool) -> None:
        names = self.cfg.switched_on
        names = names.union(SWITCHES[switch]) if on else names.difference(SWITCHES[switch])
        self.cfg = self.cfg.replace(switched_on=names)


HookedRootModule.register(HookMethods)  # every HookedTransformer is an instance of HookedRootModule
