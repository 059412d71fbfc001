"""`HookPoint`: a module that names an activation of a Flax model, so that hooks can read and write it."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.nnx.tracers import TraceState

from jaxlens._jax import FlaxModule, is_compiled
from jaxlens.errors import HookError
from jaxlens.hooks.api import DataHook, NamedHookPoint
from jaxlens.hooks.plan import Direction, RegisteredHook, SiteHook, as_hook

DIRECTIONS = {"fwd": ("fwd",), "bwd": ("bwd",), "both": ("fwd", "bwd")}

STALE = (
    "a compiled function refers to this model and keeps the hooks that it was compiled with, so the new hook does not "
    "act in it. Pass the model to the function as an argument"
)
"""The warning for a function like `jax.jit(lambda x: model(x))`."""


@dataclasses.dataclass(frozen=True)
class LensHandle:
    """A hook on a hook point, as `list_hooks` and `HookPoint.fwd_hooks` report it."""

    user_hook: Callable
    is_permanent: bool = False
    context_level: int | None = 0


def handle_of(hook: RegisteredHook) -> LensHandle:
    """The handle that reports a registered hook."""
    return LensHandle(hook.hook.fn if hook.is_plain else hook.hook, hook.permanent, hook.level)


def check_direction(direction: str) -> None:
    """Raises HookError unless `direction` is "fwd", "bwd" or "both"."""
    if direction not in DIRECTIONS:
        raise HookError(f'a direction is "fwd", "bwd" or "both"; got {direction!r}')


def refuse_conversion(hook_conversion: Any) -> None:
    """Raises NotImplementedError for a conversion of the values that hooks receive and return."""
    if hook_conversion is not None:
        raise NotImplementedError(
            "HookPoint.enable_reshape has no conversions in jaxlens; reshape in the hook function and return the value "
            "in its own shape: `return edit(value.reshape(new)).reshape(value.shape)`"
        )


def hook_of_point(
    fn: Callable, dir: Direction, name: Any, permanent: bool = False, level: int | None = None
) -> RegisteredHook:
    """A hook for one HookPoint, after checks. The numbers of a data hook become arrays, which Flax does not compare."""
    hook = as_hook(fn, dir, name)
    hook = jax.tree.map(jnp.asarray, hook) if isinstance(hook, DataHook) else hook
    return RegisteredHook((), hook, dir, permanent, level)


class HookPoint(FlaxModule):
    """The identity function of an array. Hooks on it read, edit and differentiate the array.

    Put one into a module at each activation of interest. `HookedRootModule.setup` gives it its name. The hooks are
    part of the module: a program that was compiled for a model without hooks is not used for a model with hooks. `ctx`
    is a dict in which hook functions can keep state until it is cleared. A copy of the module, such as the one that a
    transformation makes of its argument, starts with an empty `ctx`.

    Example:
        >>> import jax.numpy as jnp
        >>> point = HookPoint()
        >>> point.add_hook(lambda value, hook: value * 2)
        >>> point(jnp.ones(2)), point
        (Array([2., 2.], dtype=float32), HookPoint(1 fwd))
    """

    def __init__(self, name: str | None = None):
        self.name = name
        self._ctx: dict = {}
        self._hooks: tuple[RegisteredHook, ...] = ()
        self._watches: tuple[Callable, ...] = ()  # called with each value after all hooks; they may replace it
        self._trace = TraceState()
        self._is_compiled_in = False  # a function was compiled that holds this object, not a copy that it was passed
        self._runs = 0  # how often hooks have run

    @property
    def ctx(self) -> dict:
        """A dict in which hook functions can keep state."""
        return self._ctx

    @property
    def _label(self) -> str:
        return "(a HookPoint without a name)" if self.name is None else self.name

    def __call__(self, value: Any) -> Any:
        """The value after all hooks."""
        if is_compiled(value) and not self._trace.is_valid():
            self._is_compiled_in = True
        if not self._hooks and not self._watches:
            return value
        if not hasattr(value, "shape"):
            raise HookError(f'"{self._label}" has hooks and got a {type(value).__name__}; expected an array')
        self._runs += 1
        # The backward pass meets the hooks in reverse order, so it runs the backward hooks as they were added.
        forward = [hook for hook in self._hooks if hook.direction == "fwd"]
        backward = [hook for hook in self._hooks if hook.direction == "bwd"][::-1]
        for hook in forward + backward:
            value = SiteHook(hook.hook, self._label, hook.direction)(value, None, {self._label: self})
        for watch in self._watches:
            value = watch(value, self)
        return value

    forward = __call__

    def layer(self) -> int:
        """The number after the first dot of the name: 3 for "blocks.3.attn.hook_z".

        Raises:
            HookError: The name has no such number.
        """
        number = (self.name or "").split(".")[1:2]
        if not number or not number[0].isdigit():
            raise HookError(f'"{self._label}" has no layer; a name with a layer is like "blocks.3.hook_out"')
        return int(number[0])

    # --- hooks

    fwd_hooks = property(lambda self: self._handles("fwd"), doc="The hooks on the activation.")
    bwd_hooks = property(lambda self: self._handles("bwd"), doc="The hooks on the gradient of the activation.")

    def _handles(self, dir: str, including_permanent: bool = True) -> list[LensHandle]:
        return [handle_of(hook) for hook in self._selected(dir, including_permanent)]

    def _selected(self, dir: str, including_permanent: bool, level: int | None = None) -> list[RegisteredHook]:
        """The hooks of a direction and a level."""
        check_direction(dir)
        return [
            hook
            for hook in self._hooks
            if hook.direction in DIRECTIONS[dir] and (including_permanent or not hook.permanent)
            and level in (None, hook.level)
        ]  # fmt: skip

    def add_hook(
        self, hook: Callable, dir: Direction = "fwd", is_permanent: bool = False, level: int | None = None,
        prepend: bool = False,
    ) -> None:  # fmt: skip
        """Adds a hook `fn(value, hook) -> value | None`, or with `dir="bwd"` a hook on the gradient.

        A `jaxlens.hook(fn, **data)` may be added too.
        """
        self._add(hook_of_point(hook, dir, self._label, is_permanent, level), prepend)
        if self._may_be_stale():
            warnings.warn(STALE, UserWarning, stacklevel=2)

    def _add(self, added: RegisteredHook, prepend: bool = False) -> None:
        self._hooks = (added, *self._hooks) if prepend else (*self._hooks, added)

    def _may_be_stale(self) -> bool:
        """Whether a compiled function does not see a change of the hooks. A trace sees the hooks that it adds."""
        return self._is_compiled_in and self._trace.is_valid()

    def add_perma_hook(self, hook: Callable, dir: Direction = "fwd") -> None:
        """Adds a hook that `reset_hooks` leaves in place."""
        self.add_hook(hook, dir, is_permanent=True)

    def has_hooks(self, dir: str = "both", including_permanent: bool = True, level: int | None = None) -> bool:
        """Whether a hook is on this point."""
        return bool(self._selected(dir, including_permanent, level))

    def remove_hooks(self, dir: str = "fwd", including_permanent: bool = False, level: int | None = None) -> None:
        """Removes hooks from this point."""
        self._discard(self._selected(dir, including_permanent, level))

    def _discard(self, hooks: list[RegisteredHook]) -> None:
        """Removes these hooks. They are compared by structure, because `nnx.jit` replaces the objects by equal ones."""
        gone = set(map(jax.tree.structure, hooks))
        self._hooks = tuple(hook for hook in self._hooks if jax.tree.structure(hook) not in gone)

    def clear_context(self) -> None:
        """Empties `ctx`."""
        self._ctx = {}

    def enable_reshape(self, hook_conversion: Any = None) -> None:
        """TransformerLens's conversions of values before and after hooks, which jaxlens does not have."""
        refuse_conversion(hook_conversion)

    def __repr__(self) -> str:
        parts = [] if self.name is None else [f"name={self.name!r}"]
        parts += [f"{len(hooks)} {dir}" for dir in ("fwd", "bwd") if (hooks := self._handles(dir))]
        return f"HookPoint({', '.join(parts)})"

    # --- the pytree, and the node in the graphs of Flax

    def tree_flatten(self):
        return (self._hooks,), self.name

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("hooks"), self._hooks)], self.name

    @classmethod
    def tree_unflatten(cls, name: str | None, children: tuple[tuple[RegisteredHook, ...]]):
        point = object.__new__(cls)
        point._restore(name=name, _hooks=children[0])
        return point

    def _restore(self, **attributes: Any) -> None:
        """Sets attributes of an object that may be new, and then gets the state that is not in the pytree."""
        if "_ctx" not in vars(self):
            vars(self).update(_ctx={}, _watches=(), _trace=TraceState(), _is_compiled_in=False, _runs=0)
        vars(self).update(attributes)

    def _graph_node_flatten(self):
        return [("_hooks", self._hooks), ("name", self.name)], type(self)

    def _graph_node_clear(self) -> None:
        """Keeps the attributes, which `_graph_node_init` replaces."""

    def _graph_node_init(self, attributes: Any) -> None:
        self._restore(**dict(attributes))


HookPoint.register(NamedHookPoint)  # the hook points of a HookedTransformer are instances of HookPoint
