"""The two kinds of hooks, and the hook point that a hook function receives.

A hook is `fn(value, hook) -> value | None`. A plain Python function runs on concrete values, between two compiled steps
of its layer. `hook(fn, **data)` runs inside the compiled program: `fn` is traced, and `data` are arguments.
"""

import contextlib
import dataclasses
import dis
import functools
import inspect
import itertools
import types
from collections.abc import Callable, Iterator
from numbers import Number
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from jaxlens._jax import from_torch, is_torch_tensor
from jaxlens.errors import HookError
from jaxlens.hooks.layout import ModelLayout
from jaxlens.hooks.names import split_name
from jaxlens.hooks.positions import shortened

IMMUTABLE = (
    "Activations are immutable. Instead of `value[:, 0] = new` write `return value.at[:, 0].set(new)`; there are "
    "`.add`, `.multiply`, `.min` and `.max` too. docs/coming_from_transformerlens.md lists the JAX forms of torch code."
)
TORCH_HABITS = ("item assignment", "has no attribute", "keyword argument 'dim'", "keyword argument 'keepdim'")
"""Phrases in the errors of functions that were written for torch tensors."""


class DataHook(jax.tree_util.Partial):
    """A hook function with arrays and numbers bound to its keyword arguments, as `hook` makes it."""


jax.tree_util.register_pytree_node(
    DataHook, lambda h: ((h.args, h.keywords), h.func), lambda func, data: DataHook(func, *data[0], **data[1])
)


def hook(fn: Callable, /, **data: Any) -> DataHook:
    """A hook that runs inside the compiled forward and can be differentiated, vmapped and sharded.

    `fn` is called as `fn(value, hook, **data)`, where `hook.layer()` is a traced number. Arrays and numbers in `data`
    are traced: new values do not recompile. Globals that `fn` uses are read at compile time only. Create `fn` once and
    reuse it: a new function object compiles a new program.

    Example:
        >>> import jax.numpy as jnp
        >>> def steer(value, hook, direction, strength):
        ...     return value + strength * direction
        >>> edit = hook(steer, direction=jnp.ones(4), strength=2.0)
        >>> edit(jnp.zeros(4), None)
        Array([2., 2., 2., 2.], dtype=float32)
    """
    if not callable(fn):
        raise HookError(f"hook(fn, **data) needs a function as its first argument; got {type(fn).__name__}")
    for name, value in data.items():
        numeric = jax.Array | np.ndarray | np.generic | Number
        if wrong := [leaf for leaf in jax.tree.leaves(value) if not isinstance(leaf, numeric)]:
            raise HookError(
                f"hook(fn, {name}=...) holds a {type(wrong[0]).__name__}, but data must be arrays and numbers. Bind "
                "other values to the function instead: hook(functools.partial(fn, ...))"
            )
    return DataHook(fn, **data)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Columns:
    """What a hook function can read besides the value: positions and steps (see nn/sequence.py).

    With a `length`, the value has only so many columns; the others are padding to the length of the program.
    """

    positions: Int[Array, "b p"]
    step: Int[Array, ""]
    steps: Int[Array, "b p"]
    length: int | None = dataclasses.field(default=None, metadata={"static": True})


class NamedHookPoint:
    """A named activation of a HookedTransformer that hooks can read and write. Hook functions receive it as `hook`.

    `name` is the full name. `ctx` is a dict in which hook functions can keep state until the contexts are cleared.
    """

    def __init__(self, name: str, layer: Any = None):
        self.name = self._label = name
        self.ctx: dict = {}
        self._columns: Columns | None = None
        self._layer = split_name(name)[1] if layer is None else layer

    def layer(self) -> int:
        """The layer number of this hook point. It is traced inside the compiled loop over layers.

        Raises:
            HookError: The hook point is outside the blocks.
        """
        if self._layer is None:
            raise HookError(f'"{self.name}" is outside the blocks and has no layer')
        return self._layer

    @property
    def positions(self) -> Int[Array, "b p"]:
        """The position of each column of the value: the number of the token in its row, from 0, without padding.

        It is known while a hook function runs, and traced in compiled code. In a generation, the columns of the first
        run are those of the prompt, and those of later runs are new tokens.
        """
        return self._of_columns("positions")

    @property
    def step(self) -> Int[Array, ""]:
        """The step of a generation: 0 in the run of the prompt, then 1, 2, … for each new token that is run."""
        return self._known_columns().step

    @property
    def steps(self) -> Int[Array, "b p"]:
        """The step in which the token of each column was new: `step`, unless earlier tokens are run again."""
        return self._of_columns("steps")

    def _of_columns(self, name: str) -> Int[Array, "b p"]:
        columns = self._known_columns()
        value = getattr(columns, name)
        return value if columns.length is None else shortened(value, (1,), columns.length)

    def _known_columns(self) -> Columns:
        if self._columns is None:
            raise HookError(f'positions and step of "{self._label}" are known only while a model runs')
        return self._columns

    @contextlib.contextmanager
    def reading(self, columns: Columns) -> Iterator["NamedHookPoint"]:
        """The hook point while a function runs, which can read the positions and the step."""
        before, self._columns = self._columns, columns
        try:
            yield self
        finally:
            self._columns = before

    def __repr__(self) -> str:
        return f"HookPoint({self.name!r})"


class LayerIsRead(BaseException):
    """A hook function depends on its layer, so it cannot be traced for all layers at once. No `except` catches it."""


class HookPointOfAnyLayer(NamedHookPoint):
    """The hook points of several layers at once, for a plain function that does not read the name, the layer or ctx.

    `label` is the name in error messages.
    """

    def __init__(self, label: str):
        self._label, self._columns = label, None

    def _read(self) -> Any:
        raise LayerIsRead

    name = ctx = _layer = property(_read)


# --- calling a hook function


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PythonHook:
    """A plain hook function. All fields are part of the key of compiled programs.

    With a `layout`, the function receives arrays on a mesh with Explicit axes, in a run that uses Auto axes.
    """

    fn: Callable
    identity: Any = None
    layout: ModelLayout | None = None

    def with_new_identity(self) -> "PythonHook":
        """A copy for which every program is traced again, because `fn` may use globals that have changed."""
        return dataclasses.replace(self, identity=object())


def apply(
    hook: PythonHook | DataHook, value: jax.Array, point: NamedHookPoint, columns: Columns | None = None
) -> jax.Array:
    """The activation after a hook: the result of its function, or `value` if that is None.

    `columns` are the positions and the step that the function can read from the hook point.
    """
    if columns is not None:
        with point.reading(columns):
            return apply(hook, value, point)
    if isinstance(hook, PythonHook) and hook.layout is not None:
        explicit = hook.layout.to_explicit_at(point._label, value)
        with hook.layout.explicit(explicit):
            new = hook.layout.to_automatic(call(hook.fn, explicit, point))
    else:
        new = call(hook.fn if isinstance(hook, PythonHook) else hook, value, point)
    if new is None:
        return value
    if isinstance(new, tuple) and len(new) == 1:
        new = new[0]
    if is_torch_tensor(new):
        new = from_torch(new)
    if not isinstance(new, jax.Array | np.ndarray):
        raise HookError(f'the hook on "{point._label}" returned {type(new).__name__}; expected an array or None')
    if new.shape != value.shape:
        raise HookError(f'the hook on "{point._label}" changed the shape from {value.shape} to {new.shape}')
    if new.dtype != value.dtype:
        change = f"from {value.dtype} to {new.dtype}"
        raise HookError(f'the hook on "{point._label}" changed the dtype {change}; return `.astype(value.dtype)`')
    # The copy is independent of later writes to the hook's array. jnp.array would compile a program per shape.
    return new if isinstance(new, jax.Array) else jax.device_put(new.copy())


def call(fn: Callable, value: Any, point: NamedHookPoint) -> Any:
    """`fn(value, hook)`, with the hook point passed by keyword if `fn` has a parameter `hook`.

    An exception in `fn` gets a note with the name of the hook point and, for torch syntax, the JAX equivalent.
    """
    try:
        new = fn(value, hook=point) if _has_hook_argument(fn) else fn(value, point)
    except HookError:
        raise
    except Exception as error:
        habit = isinstance(error, TypeError | AttributeError) and any(phrase in str(error) for phrase in TORCH_HABITS)
        note = f'in the hook on "{point._label}"{f". {IMMUTABLE}" if habit else ""}'
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise
    if new is None and (name := _edited_in_place(fn)):
        raise HookError(
            f'the hook on "{point._label}" edits `{name}` in place and returns nothing, so the edit is lost. Return '
            f"the new value: instead of `{name} += new` write `return {name} + new`. {IMMUTABLE}"
        )
    return new


def _has_hook_argument(fn: Callable) -> bool:
    """Whether `fn` can be called as `fn(value, hook=point)`, as TransformerLens does."""
    if isinstance(fn, types.FunctionType) and not hasattr(fn, "__wrapped__"):
        code = fn.__code__
        return "hook" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    try:
        return "hook" in inspect.signature(fn).parameters
    except ValueError:  # some functions written in C have no signature
        return False


def _edited_in_place(fn: Callable) -> str | None:
    """The name of a function's first argument if the function assigns to it by `+=` or a similar operator, else None.

    In torch such an assignment changes the caller's tensor. In JAX it creates a new array, local to `fn`.
    """
    position = 0
    while isinstance(fn, functools.partial):
        position, fn = position + len(fn.args), fn.func
    position += inspect.ismethod(fn)
    code = getattr(fn, "__code__", None)
    if code is None or position >= code.co_argcount:
        return None
    name = code.co_varnames[position]
    return name if _assigns_in_place(code, name) else None


@functools.lru_cache(maxsize=1024)
def _assigns_in_place(code: types.CodeType, name: str) -> bool:
    for first, then in itertools.pairwise(dis.get_instructions(code)):
        in_place = first.opname == "BINARY_OP" and first.argrepr.endswith("=")
        if in_place and then.opname.startswith(("STORE_FAST", "STORE_DEREF")):
            stored = then.argval if isinstance(then.argval, str) else then.argval[0]
            if stored == name:
                return True
    return False
