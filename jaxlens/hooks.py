"""Hooks: what they are, and the Tap that a forward threads through the model to run them.

A hook is `fn(value, hook) -> value | None`. As a plain Python function it acts on its layer alone, on concrete values,
between two compiled pieces of it. As `hook(fn, **data)` it is data: `fn` is part of the compiled program, `data` are
its arguments.
"""

import dataclasses
import functools
import reprlib
from collections.abc import Callable, Mapping
from numbers import Number
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens.config import Config
from jaxlens.errors import HookError
from jaxlens.hook_call import PythonHook, call
from jaxlens.hook_table import matching, split_name

Direction = Literal["fwd", "bwd"]


class DataHook(jax.tree_util.Partial):
    """What `hook` makes: a function that stays the same and data that may change without compiling anything again."""


jax.tree_util.register_pytree_node(
    DataHook,
    lambda h: (((h.args, h.keywords)), h.func),
    lambda func, data: DataHook(func, *data[0], **data[1]),
)


def hook(fn: Callable, /, **data: Any) -> DataHook:
    """A hook whose numbers are data: arrays and numbers in `data` are traced, so new values never recompile.

    It runs inside the compiled loop over layers, and can be differentiated, vmapped and sharded like any array. `fn` is
    called as `fn(value, hook, **data)`; `hook.layer()` is a traced number there. Make `fn` once and reuse it: a new
    function object is a new program. What else `fn` reads, a global say, is read once, when it is compiled: pass what
    may change as data.

    Example:
        >>> def steer(value, hook, direction, strength):
        ...     return value + strength * direction
        >>> edit = hook(steer, direction=jnp.ones(4), strength=2.0)
        >>> edit(jnp.zeros(4), None)
        Array([2., 2., 2., 2.], dtype=float32)
    """
    if not callable(fn):
        raise HookError(f"hook(fn, **data) wants a function first; got {type(fn).__name__}")
    for name, value in data.items():
        numeric = jax.Array | np.ndarray | np.generic | Number
        if odd := [leaf for leaf in jax.tree.leaves(value) if not isinstance(leaf, numeric)]:
            raise HookError(
                f"hook(fn, {name}=...) holds {type(odd[0]).__name__}, which no compiled program can take as data; "
                "wanted arrays and numbers. Put it into the function: functools.partial(fn, ...)"
            )
    return DataHook(fn, **data)


class HookPoint:
    """A place in the model where activations can be read and written, as a hook function sees it.

    `name` is the full name; `ctx` is a dict for the hook's own use, kept until the contexts are cleared.
    """

    def __init__(self, name: str, layer: Any = None):
        self.name = name
        self.ctx: dict = {}
        self._layer = split_name(name)[1] if layer is None else layer

    def layer(self) -> int:
        """The layer this hook point is in: a number, traced in the compiled loop.

        Raises:
            HookError: a hook point outside the blocks has no layer.
        """
        if self._layer is None:
            raise HookError(f'"{self.name}" is in no layer')
        return self._layer

    def __repr__(self) -> str:
        return f"HookPoint({self.name!r})"


@dataclasses.dataclass(frozen=True)
class Added:
    """A hook as it was asked for: which names, which function, and how it is to be removed again."""

    names: tuple[str, ...]
    fn: Callable
    direction: Direction = "fwd"
    permanent: bool = False
    level: int = 0


jax.tree_util.register_dataclass(Added, ["fn"], ["names", "direction", "permanent", "level"])


def add(cfg: Config, names, fn: Callable, direction: Direction = "fwd", **how: Any) -> Added:
    """A hook on the points that `names` stands for (a name, a wildcard or a filter function).

    Raises:
        HookError: no such point, no such direction, or `fn` cannot be called.
    """
    if direction not in ("fwd", "bwd"):
        raise HookError(f'a hook\'s direction is "fwd" or "bwd", not {direction!r}')
    if not callable(fn):
        raise HookError(f"a hook is a function of (value, hook); got {type(fn).__name__} for {names!r}")
    plain = fn if isinstance(fn, DataHook) else jax.tree_util.Partial(PythonHook(fn))
    return Added(tuple(matching(cfg, names)), plain, direction, **how)


def pairs(hooks: Any) -> list[tuple[Any, Callable]]:
    """The `(name or filter function, function)` pairs of a list of hooks, or of None.

    Raises:
        HookError: it is something else.
    """
    hooks = [] if hooks is None else list(hooks)
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in hooks):
        raise HookError(f"hooks are a list of (name or filter function, function) pairs; got {reprlib.repr(hooks)}")
    return hooks


@dataclasses.dataclass(frozen=True)
class Edit:
    """One hook at one site, as the engine runs it.

    `layers` says where it acts. For a data hook it is a mask over layers, itself data; for a plain function the numbers
    of its layers, part of the program. A site outside the blocks has neither.
    """

    fn: Callable
    layers: Any
    static_layers: tuple[int, ...] | None
    site: str
    direction: Direction

    @property
    def is_plain(self) -> bool:
        return not isinstance(self.fn, DataHook)

    @property
    def in_blocks(self) -> bool:
        """Whether its site is one of a block's."""
        return self.static_layers is not None

    def afresh(self) -> "Edit":
        """The same edit under an identity of its own, so that no program traced earlier is taken for its.

        A plain function may read globals and close over tracers, which can differ at every call.
        """
        if not self.is_plain:
            return self
        fn = self.fn
        return dataclasses.replace(self, fn=jax.tree_util.Partial(lambda value, point: fn(value, point)))

    def acts_at(self, layer: int | None) -> bool:
        """Whether it acts on this layer, for a layer that is a plain number."""
        if layer is None:
            return True
        return layer in self.static_layers if self.is_plain else bool(self.layers[layer])

    def __call__(self, value, layer, points: Mapping[str, HookPoint] | None = None):
        """The value after this hook, at a layer that may be a number or traced."""
        if layer is None or isinstance(layer, int):
            return self._run(value, layer, points) if self.acts_at(layer) else value
        # A choice of what to run and not of what to keep: elsewhere the function, and its derivative, must not act.
        if not self.is_plain:
            run = functools.partial(self._run, layer=layer)
            return jax.lax.cond(jnp.asarray(self.layers)[layer], run, lambda value: value, value)
        for number in self.static_layers:
            run = functools.partial(self._run, layer=number, points=points)
            value = jax.lax.cond(layer == number, run, lambda value: value, value)
        return value

    def _run(self, value, layer, points=None):
        point = _point(self.site, layer, points)
        if self.direction == "bwd":
            layer = -1 if layer is None else layer
            return _edit_gradient(self.site, point if isinstance(layer, int) else None, value, layer, self.fn)
        return _checked(self.fn, value, point)


jax.tree_util.register_dataclass(Edit, ["fn", "layers"], ["static_layers", "site", "direction"])


def _point(site: str, layer, points: Mapping[str, HookPoint] | None) -> HookPoint:
    if layer is None:
        return points[site] if points else HookPoint(site)
    if isinstance(layer, int):
        name = f"blocks.{layer}.{site}"
        return points[name] if points else HookPoint(name)
    return HookPoint(f"blocks.*.{site}", layer)


def _checked(fn: Callable, value: jax.Array, point: HookPoint) -> jax.Array:
    """What `fn` makes of the value, if it is something that can stand in its place."""
    new = call(fn, value, point)
    if new is None:
        return value
    if isinstance(new, tuple) and len(new) == 1:
        new = new[0]
    if not isinstance(new, jax.Array | np.ndarray):
        raise HookError(f'the hook on "{point.name}" returned {type(new).__name__}; wanted an array or None')
    if new.shape != value.shape:
        raise HookError(f'the hook on "{point.name}" changed the shape from {value.shape} to {new.shape}')
    if new.dtype != value.dtype:
        raise HookError(
            f'the hook on "{point.name}" changed the dtype from {value.dtype} to {new.dtype}; '
            "return `.astype(value.dtype)`"
        )
    # a copy, for the caller may write to its array again; jnp.array would compile a program for every new shape
    return new if isinstance(new, jax.Array) else jax.device_put(new.copy())


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _edit_gradient(site, point, value, layer, fn):
    return value


def _edit_gradient_forward(site, point, value, layer, fn):
    return value, (layer, fn)


def _edit_gradient_backward(site, point, kept, gradient):
    layer, fn = kept
    return _checked(fn, gradient, point or HookPoint(f"blocks.*.{site}", layer)), None, None


_edit_gradient.defvjp(_edit_gradient_forward, _edit_gradient_backward)


@dataclasses.dataclass(frozen=True)
class Listening:
    """All that one forward is asked for: the edits, and the names whose values are wanted.

    `positions` cuts captured values along their position axis; `points` are the HookPoints that plain functions see.
    """

    cfg: Config
    edits: tuple[Edit, ...] = ()
    wanted: frozenset[str] = frozenset()
    positions: Any = None
    points: Mapping[str, HookPoint] | None = None

    @classmethod
    def of(cls, cfg: Config, hooks: tuple[Added, ...], wanted, positions, points, probes=()) -> "Listening":
        """Sorts hooks by site: forward edits in the order they were added, then those of gradients, then `probes`.

        A gradient passes its site backwards, so the last of its edits is the first it meets.
        """
        forward = [h for h in hooks if h.direction == "fwd"]
        backward = [h for h in hooks if h.direction == "bwd"][::-1]
        edits = [edit for h in forward + backward for edit in _edits(cfg, h)]
        return cls(cfg, (*edits, *probes), wanted, positions, points)

    def wanted_at(self, layer: int | None) -> frozenset[str]:
        """The sites wanted in a layer, or outside the blocks."""
        return frozenset(site for site, at in map(split_name, self.wanted) if at == layer)

    def edited_by_python(self, layer: int | None, site: str | None = None) -> bool:
        """Whether a plain function edits this layer's values (or this site outside the blocks)."""
        return any(
            edit.is_plain and edit.direction == "fwd" and edit.acts_at(layer)
            for edit in self.edits
            if edit.in_blocks == (layer is not None) and (site is None or edit.site == site)
        )

    def edits_in(self, layers: tuple[int, ...]) -> tuple[Edit, ...]:
        """The edits that act on any of these layers."""
        return tuple(e for e in self.edits if e.in_blocks and any(map(e.acts_at, layers)))


def _edits(cfg: Config, added: Added) -> list[Edit]:
    """One Edit for every site that a hook is on."""
    by_site: dict[str, list[int | None]] = {}
    for name in added.names:
        site, layer = split_name(name)
        by_site.setdefault(site, []).append(layer)
    edits = []
    for site, layers in by_site.items():
        if layers == [None]:
            edits.append(Edit(added.fn, None, None, site, added.direction))
        elif isinstance(added.fn, DataHook):
            mask = np.isin(np.arange(cfg.n_layers), layers)
            edits.append(Edit(added.fn, mask, (), site, added.direction))
        else:
            edits.append(Edit(added.fn, None, tuple(layers), site, added.direction))
    return edits


@jax.custom_jvp
def _as_used(value: jax.Array) -> jax.Array:
    """The same value, rounded before it is used any further.

    A compiler may contract `x + w * y` into one operation that never rounds the product, and then `x` plus what was
    handed out as `w * y` is not exactly what the residual stream became. It does not do so across a choice.
    """
    return jnp.where(value == value, value, jnp.nan) if jnp.issubdtype(value.dtype, jnp.floating) else value


@_as_used.defjvp
def _as_used_jvp(primals, tangents):
    return _as_used(*primals), tangents[0]


class Tap:
    """What one forward reads and writes: threaded through the model, called at every hook point, never kept.

    `caught` collects the wanted values by site. `layer` is None outside the blocks. `in_pieces` is true in a layer that
    is not compiled as a whole.
    """

    def __init__(
        self, edits, wanted=frozenset(), layer=None, positions=None, points=None, prefix="", caught=None,
        in_pieces=False,
    ):  # fmt: skip
        self._edits, self._wanted, self._positions, self._points = edits, wanted, positions, points
        self.layer, self.prefix, self.in_pieces = layer, prefix, in_pieces
        self.caught: dict[str, jax.Array] = {} if caught is None else caught

    def at(self, place: str) -> "Tap":
        """The same tap one level down: names are given relative to `place`."""
        return Tap(
            self._edits, self._wanted, self.layer, self._positions, self._points, f"{self.prefix}{place}.", self.caught,
            self.in_pieces,
        )  # fmt: skip

    def silent(self) -> "Tap":
        """A tap that nobody listens to."""
        return Tap((), layer=self.layer)

    def edits(self, name: str) -> bool:
        """Whether a hook may change the value at this point."""
        site = self.prefix + name
        concrete = self.layer is None or isinstance(self.layer, int)
        return any(edit.site == site and (not concrete or edit.acts_at(self.layer)) for edit in self._edits)

    def listens(self, name: str) -> bool:
        """Whether anybody reads or writes at this point."""
        return self.prefix + name in self._wanted or self.edits(name)

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        """The value as the hooks leave it."""
        site = self.prefix + name
        for edit in self._edits:
            if edit.site == site:
                value = edit(value, self.layer, self._points)
        if site in self._wanted:
            value = _as_used(value)
            self.caught[site] = value if self._positions is None else self._positions.cut(site, value)
        return value
