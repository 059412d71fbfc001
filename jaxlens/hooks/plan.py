"""Hooks as they are registered on names, and as the forward runs them at sites.

RegisteredHook   names ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"]     from `add_hook`, or passed to a call
SiteHook         site "hook_mlp_out" in layers (0, 1)                         one for each site of a registered hook
HookPlan         all site hooks of one run, and the names of the values to capture
"""

import dataclasses
import functools
import reprlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxlens._jax import is_traced
from jaxlens.config import Config
from jaxlens.errors import HookError
from jaxlens.hooks.api import Columns, DataHook, HookPointOfAnyLayer, LayerIsRead, NamedHookPoint, PythonHook, apply
from jaxlens.hooks.names import HookName, matching, split_name
from jaxlens.hooks.positions import Positions
from jaxlens.hooks.table import BLOCK_NAMES, RESID_POST, RESID_PRE

Direction = Literal["fwd", "bwd"]
HookSpec = tuple[HookName, Callable]


# --- as hooks are registered


@dataclasses.dataclass(frozen=True)
class RegisteredHook:
    """A hook on the values ("fwd") or the gradients ("bwd") of hook points.

    `permanent` hooks are kept by `reset_hooks`. `level` is the depth of nested `model.hooks(...)` blocks.
    """

    names: tuple[str, ...]
    hook: PythonHook | DataHook
    direction: Direction = "fwd"
    permanent: bool = False
    level: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether the hook is a plain Python function."""
        return isinstance(self.hook, PythonHook)


jax.tree_util.register_dataclass(RegisteredHook, ["hook"], ["names", "direction", "permanent", "level"])


def register(cfg: Config, name: HookName, fn: Callable, direction: Direction = "fwd", **options: Any) -> RegisteredHook:
    """A hook on all hook points that `name` selects (a full name, a wildcard or a filter function)."""
    hook = as_hook(fn, direction, name)
    return RegisteredHook(tuple(matching(cfg, name)), hook, direction, **options)


def as_hook(fn: Callable, direction: str, name: Any) -> PythonHook | DataHook:
    """The hook of a function, after checks of its type and its direction. `name` is where it is added."""
    if direction not in ("fwd", "bwd"):
        raise HookError(f'the direction of a hook is "fwd" or "bwd"; got {direction!r}')
    if not callable(fn):
        raise HookError(f"a hook is a function of (value, hook); got {type(fn).__name__} for {name!r}")
    return fn if isinstance(fn, DataHook) else PythonHook(fn)


def hook_specs(hooks: Any) -> list[HookSpec]:
    """`hooks` as a list, checked to contain `(name or filter function, function)` pairs. Empty for None."""
    hooks = [] if hooks is None else list(hooks)
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in hooks):
        raise HookError(f"hooks are a list of (name or filter function, function) pairs; got {reprlib.repr(hooks)}")
    return hooks


# --- as the forward runs them


@dataclasses.dataclass(frozen=True)
class SiteHook:
    """One hook at one site, as the forward runs it.

    In the blocks, a plain hook has `layers`, the numbers of its layers, which are part of the program. A data hook has
    `mask`, a mask over layers, which is an argument of the program. Without a mask it acts in every layer.
    """

    hook: PythonHook | DataHook
    site: str
    direction: Direction = "fwd"
    layers: tuple[int, ...] = ()
    mask: Any = None

    @property
    def is_plain(self) -> bool:
        """Whether the hook is a plain Python function."""
        return isinstance(self.hook, PythonHook)

    @property
    def in_blocks(self) -> bool:
        """Whether the site is inside the blocks."""
        return self.site in BLOCK_NAMES

    def with_new_identity(self) -> "SiteHook":
        """A copy of the hook. If it is plain, every program is traced again for it."""
        return dataclasses.replace(self, hook=self.hook.with_new_identity()) if self.is_plain else self

    def acts_in(self, layer: int | None) -> bool:
        """Whether the hook acts in the layer with this number, or outside the blocks (None)."""
        if layer is None:
            return True
        if self.is_plain:
            return layer in self.layers
        return self.mask is None or is_traced(self.mask) or bool(self.mask[layer])

    def acts_in_any(self, layers: tuple[int, ...]) -> bool:
        """Whether it acts in any of these layers."""
        if self.is_plain:
            return not set(self.layers).isdisjoint(layers)
        return self.mask is None or is_traced(self.mask) or bool(np.any(self.mask[np.array(layers)]))

    def __call__(
        self,
        value: jax.Array,
        layer,
        points: Mapping[str, NamedHookPoint] | None = None,
        columns: Columns | None = None,
    ) -> jax.Array:
        """The value after this hook. `layer` may be traced. `columns` are the positions and the step of the run."""
        in_any_layer = layer is not None and not isinstance(layer, int)
        if not in_any_layer and not self.acts_in(layer):
            return value
        if self.direction == "fwd":
            return self._edited(value, layer, points, columns)
        traced, structure = jax.tree.flatten((self, layer if in_any_layer else None, columns))

        def edit(gradient, *traced):  # runs after the trace of `layer` has ended
            hook, traced_layer, columns = structure.unflatten(traced)
            return hook._edited(gradient, traced_layer if in_any_layer else layer, points, columns)

        return _edit_gradient.bind(value, *traced, edit=edit)

    def _edited(self, value, layer, points: Mapping[str, NamedHookPoint] | None, columns: Columns | None):
        """The result of the function, in a layer in which it acts or, if `layer` is traced, in any layer."""
        if layer is None or isinstance(layer, int):
            name = self.site if layer is None else f"blocks.{layer}.{self.site}"
            return apply(self.hook, value, points[name] if points else NamedHookPoint(name), columns)
        if not self.is_plain:
            acts = None if self.mask is None else jnp.asarray(self.mask)[layer]
            return self._edited_if(acts, value, NamedHookPoint(f"blocks.*.{self.site}", layer), columns)
        try:
            acts = jnp.any(layer == np.array(self.layers))
            return self._edited_if(acts, value, HookPointOfAnyLayer(f"blocks.{self.layers[0]}.{self.site}"), columns)
        except LayerIsRead:  # the function is traced for each layer
            for number in self.layers:
                name = f"blocks.{number}.{self.site}"
                point = points[name] if points else NamedHookPoint(name)
                value = self._edited_if(layer == number, value, point, columns)
            return value

    def _edited_if(self, acts, value, point: NamedHookPoint, columns: Columns | None):
        """The value, edited if `acts` (None: in every layer)."""
        edited = functools.partial(apply, self.hook, point=point, columns=columns)
        # not `where`, which would run the function and its derivative in other layers too
        return edited(value) if acts is None else jax.lax.cond(acts, edited, lambda value: value, value)


jax.tree_util.register_dataclass(SiteHook, ["hook", "mask"], ["site", "direction", "layers"])


_edit_gradient = Primitive("edit_gradient")
"""The value unchanged. In the backward pass, `edit(gradient, *data)` replaces its gradient.

It has no effect in forward mode. A `jax.custom_vjp` cannot be differentiated in forward mode at all.
"""
_edit_gradient.def_impl(lambda value, *data, edit: value)
_edit_gradient.def_abstract_eval(lambda value, *data, edit: value)
mlir.register_lowering(_edit_gradient, lambda context, value, *data, edit: [value])


def _edit_gradient_jvp(primals, tangents, edit):
    (value, *data), (tangent, *_) = primals, tangents
    return value, tangent if isinstance(tangent, ad.Zero) else _edit_gradient.bind(tangent, *data, edit=edit)


def _edit_gradient_transpose(gradient, value, *data, edit):
    return [gradient if isinstance(gradient, ad.Zero) else edit(gradient, *data), *(None for _ in data)]


def _edit_gradient_batched(args, axes, edit):
    size = next(arg.shape[axis] for arg, axis in zip(args, axes, strict=True) if axis is not None)
    (value, *data), axis = args, axes[0]
    value = jnp.broadcast_to(value, (size, *value.shape)) if axis is None else jnp.moveaxis(value, axis, 0)
    return _edit_gradient.bind(value, *data, edit=jax.vmap(edit, (0, *axes[1:]))), 0


ad.primitive_jvps[_edit_gradient] = _edit_gradient_jvp
ad.primitive_transposes[_edit_gradient] = _edit_gradient_transpose
batching.primitive_batchers[_edit_gradient] = _edit_gradient_batched


def zero_probe(site: str, zero: jax.Array, layers: tuple[int, ...] | None = None, n_layers: int = 0) -> SiteHook:
    """A hook that adds `zero`. The derivative with respect to `zero` is the gradient at the site.

    With `layers`, `zero` has a leading axis with one row for each of them.
    """
    if layers is None:
        return SiteHook(DataHook(_add, zero=zero), site)
    numbers = np.arange(n_layers)
    rows = np.searchsorted(layers, numbers).clip(max=len(layers) - 1)
    return SiteHook(DataHook(_add_row, zeros=zero, rows=rows), site, mask=np.isin(numbers, layers))


@jax.jit
def _single_rows(values: dict[str, jax.Array], rows: dict[str, Any]) -> dict[str, jax.Array]:
    return {site: jax.lax.dynamic_slice_in_dim(value, rows[site], 1) for site, value in values.items()}


def _add(value, hook, zero):
    return value + zero


def _add_row(value, hook, zeros, rows):
    return value + zeros[jnp.asarray(rows)[hook.layer()]]


@dataclasses.dataclass(frozen=True)
class HookPlan:
    """The hooks of one run, and the names of the values to capture (`wanted`).

    A probe adds zeros to a captured value, after all hooks; see `zero_probe`.
    `positions` are those at which values are captured. `points` are the HookPoints that plain functions receive, and
    `length` is the length of the values that they receive in a run that is padded to a longer one.
    """

    cfg: Config
    hooks: tuple[SiteHook, ...] = ()
    wanted: frozenset[str] = frozenset()
    positions: Positions | None = None
    points: Mapping[str, NamedHookPoint] | None = None
    length: int | None = None
    probes: tuple[SiteHook, ...] = ()

    @classmethod
    def of(
        cls, cfg: Config, hooks: tuple[RegisteredHook, ...], wanted: frozenset[str] = frozenset(),
        positions: Positions | None = None, points: Mapping[str, NamedHookPoint] | None = None,
        probes: tuple[SiteHook, ...] = (), length: int | None = None,
    ) -> "HookPlan":  # fmt: skip
        """The plan of hooks (registered, or at sites): forward hooks in order, then backward hooks in reverse order.

        The backward pass runs the hooks of a site from last to first, so it runs backward hooks as registered.
        """
        forward = [hook for hook in hooks if hook.direction == "fwd"]
        backward = [hook for hook in hooks if hook.direction == "bwd"][::-1]
        by_site = [site_hook for hook in forward + backward for site_hook in site_hooks(cfg, hook)]
        return cls(cfg, tuple(by_site), wanted, positions, points, length, probes)

    @property
    def wanted_in(self) -> Mapping[int | None, frozenset[str]]:
        """The sites to capture by layer, and outside the blocks (None)."""
        return sites_by_layer(self.wanted)

    def touches(self, names: Collection[str]) -> bool:
        """Whether a value with one of these names, outside the blocks, is captured or may be edited."""
        return not self.wanted.isdisjoint(names) or any(hook.site in names for hook in (*self.hooks, *self.probes))

    def edited_by_python(self, differentiated: bool) -> tuple[frozenset[int], frozenset[int]]:
        """The layers inside which, and those directly before which, a plain function edits values.

        It edits gradients too if `differentiated`. An edit of the residual stream at the beginning of a layer, or at
        its end, is not inside, unless a data hook acts there too.
        """
        directions = ("fwd", "bwd") if differentiated else ("fwd",)
        inside, before = set(), set()
        for hook in self.hooks:
            if not hook.is_plain or hook.direction not in directions or not hook.in_blocks:
                continue
            data_hooks = [other for other in self.hooks if other.site == hook.site and not other.is_plain]
            for layer in hook.layers:
                if hook.site not in (RESID_PRE, RESID_POST) or any(other.acts_in(layer) for other in data_hooks):
                    inside.add(layer)
                else:
                    before.add(layer + (hook.site == RESID_POST))
        return frozenset(inside), frozenset(before)

    def plain_hooks_at(self, site: str, layer: int) -> tuple[SiteHook, ...]:
        """The plain functions that edit values or gradients at a site of a layer."""
        return tuple(h for h in self.hooks if h.site == site and h.is_plain and h.acts_in(layer))

    def without_plain_hooks_at(self, site: str, layer: int) -> "HookPlan":
        """The plan for the rest of a run in which these functions have run already."""
        hooks = []
        for hook in self.hooks:
            if hook.site == site and hook.is_plain:
                hook = dataclasses.replace(hook, layers=tuple(other for other in hook.layers if other != layer))
            hooks.append(hook)
        return dataclasses.replace(self, hooks=tuple(hooks))

    def hooks_in(self, layers: tuple[int, ...]) -> tuple[SiteHook, ...]:
        """The hooks and probes that act in any of these layers."""
        return tuple(hook for hook in (*self.hooks, *self.probes) if hook.in_blocks and hook.acts_in_any(layers))

    def data_hooks_in(self, layers: tuple[int, ...]) -> tuple[SiteHook, ...]:
        """The data hooks that act in any of these layers."""
        data = (hook for hook in self.hooks if not hook.is_plain and hook.in_blocks)
        return tuple(hook for hook in data if hook.acts_in_any(layers))

    def probes_at(self, wanted: frozenset[str], layers: tuple[int, ...]) -> dict[str, jax.Array]:
        """The zeros that probes add at these sites, with a row for each of these layers."""
        probes = (probe for probe in self.probes if probe.site in wanted) if layers else ()
        data = {probe.site: probe.hook.keywords for probe in probes if probe.acts_in_any(layers)}
        zeros = {site: of_site["zeros"] for site, of_site in data.items()}
        if len(layers) > 1 or not zeros:  # a probe of several layers of a stack is one of all its layers
            return zeros
        return _single_rows(zeros, {site: of_site["rows"][layers[0]] for site, of_site in data.items()})


@functools.lru_cache(maxsize=256)
def sites_by_layer(wanted: frozenset[str]) -> Mapping[int | None, frozenset[str]]:
    """The sites of these names by layer, and those outside the blocks (None)."""
    by_layer: dict[int | None, set[str]] = {}
    for site, layer in map(split_name, wanted):
        by_layer.setdefault(layer, set()).add(site)
    distinct: dict[frozenset[str], frozenset[str]] = {}  # layers with equal sites share a set: they compare quickly
    by_layer = {layer: frozenset(sites) for layer, sites in by_layer.items()}
    return {layer: distinct.setdefault(sites, sites) for layer, sites in by_layer.items()}


def site_hooks(cfg: Config, registered: RegisteredHook | SiteHook) -> list[SiteHook]:
    """One SiteHook for every site of a registered hook."""
    if isinstance(registered, SiteHook):
        return [registered]
    by_site: dict[str, list[int | None]] = {}
    for name in registered.names:
        site, layer = split_name(matching(cfg, name)[0])  # raises if the config changed and the point is gone
        by_site.setdefault(site, []).append(layer)
    hooks = []
    for site, layers in by_site.items():
        where: dict[str, Any] = {}
        if layers != [None] and registered.is_plain:
            where = {"layers": tuple(layers)}
        elif layers != [None]:
            where = {"mask": np.isin(np.arange(cfg.n_layers), layers)}
        hooks.append(SiteHook(registered.hook, site, registered.direction, **where))
    return hooks
