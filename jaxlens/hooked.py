"""The hooks that stay on a model between runs: adding, listing and removing them."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator

from jaxlens.config import Config
from jaxlens.errors import HookError
from jaxlens.hook_table import sites
from jaxlens.hooks import Added, DataHook, Direction, HookPoint, add, pairs

HookName = str | Callable[[str], bool]
HookSpec = tuple[HookName, Callable]


class Points(dict):
    """The HookPoints of a model by name; equal only to itself, since each carries a context of its own."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def hook_points(cfg: Config) -> Points:
    """A HookPoint for every row of the hook table."""
    return Points({name: HookPoint(name) for name in sites(cfg)})


@dataclasses.dataclass(frozen=True)
class LensHandle:
    """A hook on a hook point, as it was added."""

    user_hook: Callable
    is_permanent: bool = False
    context_level: int = 0


class HookPointOnModel(HookPoint):
    """A hook point of a model, by which hooks can be added to the model and looked at."""

    def __init__(self, model: "HooksOnModel", name: str):
        super().__init__(name)
        self._model, self.ctx = model, model._points[name].ctx

    def __repr__(self) -> str:
        return f"HookPoint({self.name!r})"

    fwd_hooks = property(lambda self: self._handles("fwd"), doc="The hooks on this point's value.")
    bwd_hooks = property(lambda self: self._handles("bwd"), doc="The hooks on its gradient.")

    def _handles(self, dir: str) -> list[LensHandle]:
        return self._model.list_hooks(self.name, dir).get(self.name, [])

    def add_hook(
        self, hook: Callable, dir: Direction = "fwd", is_permanent: bool = False, level: int | None = None,
        prepend: bool = False,
    ) -> None:  # fmt: skip
        """Adds a hook to the model, on this point."""
        self._model.add_hook(self.name, hook, dir, is_permanent, level, prepend)

    def add_perma_hook(self, hook: Callable, dir: Direction = "fwd") -> None:
        """Adds a hook that resetting leaves in place."""
        self.add_hook(hook, dir, is_permanent=True)

    def has_hooks(self, dir: str = "both", including_permanent: bool = True, level: int | None = None) -> bool:
        """Whether a hook is on this point."""
        handles = self._model.list_hooks(self.name, dir, including_permanent).get(self.name, [])
        return any(level is None or handle.context_level == level for handle in handles)

    def remove_hooks(self, dir: str = "fwd", including_permanent: bool = False, level: int | None = None) -> None:
        """Takes hooks off this point; those that are on other points too stay there."""
        self._model._remove(dir, including_permanent, level, self.name)

    def clear_context(self) -> None:
        """Empties `ctx`."""
        self.ctx.clear()


def _is_chosen(hook: Added, direction: str, including_permanent: bool, level: int | None) -> bool:
    """Whether this hook is one of those that are described."""
    of_direction = direction in ("both", hook.direction)
    return of_direction and (including_permanent or not hook.permanent) and level in (None, hook.level)


def _check_direction(direction: str) -> None:
    if direction not in ("fwd", "bwd", "both"):
        raise HookError(f'a direction is "fwd", "bwd" or "both", not {direction!r}')


class HooksOnModel:
    """Mixin: hooks that act in every run until they are removed.

    They are part of the model's pytree, so a program compiled for a model without them is not reused with them.
    """

    cfg: Config
    _hooks: tuple[Added, ...]
    _points: Points
    _level: int

    @property
    def hook_dict(self) -> dict[str, HookPoint]:
        """Every hook point by name, those that exist only on request included."""
        return {name: HookPointOnModel(self, name) for name in self._points}

    def hook_points(self) -> list[HookPoint]:
        """Every hook point, in the order in which they fire."""
        return list(self.hook_dict.values())

    def add_hook(
        self, name: HookName, hook: Callable, dir: Direction = "fwd", is_permanent: bool = False,
        level: int | None = None, prepend: bool = False,
    ) -> None:  # fmt: skip
        """Adds a hook that acts in every run: forward (`dir="fwd"`) or on gradients (`dir="bwd"`).

        Raises:
            HookError: `name` stands for no hook point of this model.
        """
        level = self._level if level is None else level
        added = add(self.cfg, name, hook, dir, permanent=is_permanent, level=level)
        self._hooks = (added, *self._hooks) if prepend else (*self._hooks, added)

    def add_perma_hook(self, name: HookName, hook: Callable, dir: Direction = "fwd") -> None:
        """Adds a hook that `reset_hooks` leaves in place."""
        self.add_hook(name, hook, dir, is_permanent=True)

    def reset_hooks(
        self, clear_contexts: bool = True, direction: str = "both", including_permanent: bool = False,
        level: int | None = None,
    ) -> None:  # fmt: skip
        """Removes hooks: those of one direction, or of one level of nested `hooks(...)` blocks, or all.

        Raises:
            HookError: there is no such direction.
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
        """Takes hooks away, or off one hook point."""
        _check_direction(direction)
        left = []
        for hook in self._hooks:
            if _is_chosen(hook, direction, including_permanent, level):
                names = () if name is None else tuple(one for one in hook.names if one != name)
                hook = dataclasses.replace(hook, names=names)
            left.append(hook)
        self._hooks = tuple(hook for hook in left if hook.names)

    def list_hooks(
        self, name_filter: HookName | Collection[str] | None = None, dir: str = "both", including_permanent: bool = True
    ) -> dict[str, list[LensHandle]]:
        """The hooks on each hook point that has any, or on those that `name_filter` chooses.

        Raises:
            HookError: there is no such direction.
        """
        _check_direction(dir)
        if isinstance(name_filter, str):
            name_filter = (name_filter,)
        chosen = name_filter if callable(name_filter) else lambda name: name_filter is None or name in name_filter
        found: dict[str, list[LensHandle]] = {}
        for hook in self._hooks:
            if _is_chosen(hook, dir, including_permanent, None):
                for name in filter(chosen, hook.names):
                    found.setdefault(name, []).append(LensHandle(_as_given(hook.fn), hook.permanent, hook.level))
        return found

    @contextlib.contextmanager
    def hooks(
        self, fwd_hooks: list[HookSpec] | None = None, bwd_hooks: list[HookSpec] | None = None,
        reset_hooks_end: bool = True, clear_contexts: bool = False,
    ) -> Iterator["HooksOnModel"]:  # fmt: skip
        """Hooks for the length of a `with` block; blocks may be nested, and each removes only its own.

        Example:
            >>> import jaxlens
            >>> model = jaxlens.HookedTransformer(jaxlens.Config(
            ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8, attn_only=True))
            >>> with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: z * 0)]):
            ...     logits = model([[1, 2, 3]])
        """
        before = self._hooks
        self._level += 1
        try:
            for name, hook in pairs(fwd_hooks):
                self.add_hook(name, hook, "fwd")
            for name, hook in pairs(bwd_hooks):
                self.add_hook(name, hook, "bwd")
            yield self
        finally:
            if reset_hooks_end:
                self._hooks = tuple(h for h in self._hooks if h in before or h.permanent or h.level != self._level)
                if clear_contexts:
                    self.clear_contexts()
            self._level -= 1


def _as_given(fn: Callable) -> Callable:
    """The function that was added; plain ones are wrapped."""
    return fn if isinstance(fn, DataHook) else fn.func.fn
