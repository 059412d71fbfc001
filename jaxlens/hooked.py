"""The hooks that stay on a model between runs: adding, listing and removing them."""

import contextlib
from collections.abc import Callable, Iterator

from jaxlens.config import Config
from jaxlens.errors import HookError
from jaxlens.hook_table import sites
from jaxlens.hooks import Added, Direction, HookPoint, add, pairs

HookName = str | Callable[[str], bool]
HookSpec = tuple[HookName, Callable]


class Points(dict):
    """The HookPoints of a model by name; equal only to itself, since each carries a context of its own."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def hook_points(cfg: Config) -> Points:
    """A HookPoint for every row of the hook table."""
    return Points({name: HookPoint(name) for name in sites(cfg)})


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
        return dict(self._points)

    def hook_points(self) -> list[HookPoint]:
        """Every hook point, in the order in which they fire."""
        return list(self._points.values())

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
        if direction not in ("fwd", "bwd", "both"):
            raise HookError(f'a direction is "fwd", "bwd" or "both", not {direction!r}')
        self._hooks = tuple(
            h for h in self._hooks
            if (h.permanent and not including_permanent)
            or (direction != "both" and h.direction != direction)
            or (level is not None and h.level != level)
        )  # fmt: skip
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

    def list_hooks(self, dir: str = "both", including_permanent: bool = True) -> dict[str, list[Callable]]:
        """The hook functions on each hook point that has any."""
        found: dict[str, list[Callable]] = {}
        for h in self._hooks:
            if dir in ("both", h.direction) and (including_permanent or not h.permanent):
                for name in h.names:
                    found.setdefault(name, []).append(h.fn)
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
