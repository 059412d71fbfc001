"""Hooks as they are registered on names, and as the forward runs them at sites.

RegisteredHook   names ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"]     from `add_hook`, or passed to a call
SiteHook         site "hook_mlp_out" in layers (0, 1)                         one for each site of a registered hook
HookPlan         all site hooks of one run, and the names of the values to capture
"""

import dataclasses
import functools
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens.config import Config
from jaxlens.errors import HookError
from jaxlens.hooks.api import DataHook, HookPoint, PythonHook, apply
from jaxlens.hooks.names import HookName, matching, split_name
from jaxlens.hooks.slice import Slice
from jaxlens.hooks.table import BLOCK_NAMES

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
    if direction not in ("fwd", "bwd"):
        raise HookError(f'the direction of a hook is "fwd" or "bwd"; got {direction!r}')
    if not callable(fn):
        raise HookError(f"a hook is a function of (value, hook); got {type(fn).__name__} for {name!r}")
    hook = fn if isinstance(fn, DataHook) else PythonHook(fn)
    return RegisteredHook(tuple(matching(cfg, name)), hook, direction, **options)


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
        return layer in self.layers if self.is_plain else self.mask is None or bool(self.mask[layer])

    def __call__(self, value: jax.Array, layer, points: Mapping[str, HookPoint] | None = None) -> jax.Array:
        """The value after this hook. `layer` may be traced."""
        run = functools.partial(self._run, points=points)
        if layer is None or isinstance(layer, int):
            return run(value, layer) if self.acts_in(layer) else value
        # Not `where`, which would run the function and its derivative in other layers too.
        if self.is_plain:
            for number in self.layers:
                value = jax.lax.cond(layer == number, functools.partial(run, layer=number), lambda value: value, value)
            return value
        if self.mask is None:
            return run(value, layer)
        acts = jnp.asarray(self.mask)[layer]
        return jax.lax.cond(acts, functools.partial(run, layer=layer), lambda value: value, value)

    def _run(self, value, layer, points=None):
        point = _point(self.site, layer, points)
        if self.direction == "fwd":
            return apply(self.hook, value, point)
        number = -1 if layer is None else layer
        return _edit_gradient(self.site, point if isinstance(number, int) else None, value, number, self.hook)


jax.tree_util.register_dataclass(SiteHook, ["hook", "mask"], ["site", "direction", "layers"])


def _point(site: str, layer, points: Mapping[str, HookPoint] | None) -> HookPoint:
    if layer is None:
        return points[site] if points else HookPoint(site)
    if isinstance(layer, int):
        name = f"blocks.{layer}.{site}"
        return points[name] if points else HookPoint(name)
    return HookPoint(f"blocks.*.{site}", layer)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _edit_gradient(site, point, value, layer, hook):
    """The value unchanged. In the backward pass, the result of `hook` replaces its gradient."""
    return value


def _edit_gradient_forward(site, point, value, layer, hook):
    return value, (layer, hook)


def _edit_gradient_backward(site, point, kept, gradient):
    layer, hook = kept
    return apply(hook, gradient, point or HookPoint(f"blocks.*.{site}", layer)), None, None


_edit_gradient.defvjp(_edit_gradient_forward, _edit_gradient_backward)


def zero_probe(site: str, zero: jax.Array, layers: tuple[int, ...] | None = None, n_layers: int = 0) -> SiteHook:
    """A hook that adds `zero`. The derivative with respect to `zero` is the gradient at the site.

    With `layers`, `zero` has a leading axis with one row for each of them.
    """
    if layers is None:
        return SiteHook(DataHook(_add, zero=zero), site)
    numbers = np.arange(n_layers)
    rows = np.searchsorted(layers, numbers).clip(max=len(layers) - 1)
    return SiteHook(DataHook(_add_row, zeros=zero, rows=rows), site, mask=np.isin(numbers, layers))


def _add(value, hook, zero):
    return value + zero


def _add_row(value, hook, zeros, rows):
    return value + zeros[jnp.asarray(rows)[hook.layer()]]


@dataclasses.dataclass(frozen=True)
class HookPlan:
    """The hooks of one run, and the names of the values to capture (`wanted`).

    `positions` selects positions of captured values. `points` are the HookPoints that plain functions receive.
    """

    cfg: Config
    hooks: tuple[SiteHook, ...] = ()
    wanted: frozenset[str] = frozenset()
    positions: Slice | None = None
    points: Mapping[str, HookPoint] | None = None

    @classmethod
    def of(
        cls, cfg: Config, hooks: tuple[RegisteredHook, ...], wanted: frozenset[str] = frozenset(),
        positions: Slice | None = None, points: Mapping[str, HookPoint] | None = None,
        probes: tuple[SiteHook, ...] = (),
    ) -> "HookPlan":  # fmt: skip
        """The plan of registered hooks: forward hooks in order, backward hooks in reverse order, then probes.

        The backward pass runs the hooks of a site from last to first, so it runs backward hooks as registered.
        """
        forward = [hook for hook in hooks if hook.direction == "fwd"]
        backward = [hook for hook in hooks if hook.direction == "bwd"][::-1]
        by_site = [site_hook for hook in forward + backward for site_hook in _site_hooks(cfg, hook)]
        return cls(cfg, (*by_site, *probes), wanted, positions, points)

    def wanted_in(self, layer: int | None) -> frozenset[str]:
        """The sites to capture in a layer, or outside the blocks (None)."""
        return frozenset(site for site, at in map(split_name, self.wanted) if at == layer)

    def is_edited_by_python(self, layer: int) -> bool:
        """Whether a plain Python function edits values of this layer."""
        plain = (hook for hook in self.hooks if hook.is_plain and hook.direction == "fwd" and hook.in_blocks)
        return any(hook.acts_in(layer) for hook in plain)

    def hooks_in(self, layers: tuple[int, ...]) -> tuple[SiteHook, ...]:
        """The hooks that act in any of these layers."""
        return tuple(hook for hook in self.hooks if hook.in_blocks and any(map(hook.acts_in, layers)))


def _site_hooks(cfg: Config, registered: RegisteredHook) -> list[SiteHook]:
    """One SiteHook for every site of a registered hook."""
    by_site: dict[str, list[int | None]] = {}
    for name in registered.names:
        site, layer = split_name(name)
        by_site.setdefault(site, []).append(layer)
    hooks = []
    for site, layers in by_site.items():
        where: dict[str, Any] = {}
        if layers != [None]:
            mask = np.isin(np.arange(cfg.n_layers), layers)
            where = {"layers": tuple(layers)} if registered.is_plain else {"mask": mask}
        hooks.append(SiteHook(registered.hook, site, registered.direction, **where))
    return hooks
