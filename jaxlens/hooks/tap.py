"""The Tap, which the forward calls at every hook point to run hooks and to capture values."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxlens.hooks.api import Columns, NamedHookPoint
from jaxlens.hooks.plan import SiteHook
from jaxlens.hooks.positions import Positions, overwritten, shortened
from jaxlens.hooks.table import LENGTH_AXES, POSITION_AXES

if TYPE_CHECKING:
    from jaxlens.nn.kv_cache import LayerMemory


OF_MATRIX_PRODUCTS = frozenset(
    (*(f"attn.hook_{name}" for name in ("q", "k", "v", "rot_q", "rot_k")), "mlp.hook_pre", "mlp.hook_pre_linear")
)
"""Sites whose values are matrix products, with or without a bias, or are read only by matrix products. No elementwise
product is added to another value there, so they need no `_rounded`.
"""


class Tap:
    """Runs hooks and captures values in one layer of one forward, or outside the blocks (`layer` is None).

    The model calls `value = tap("hook_name", value)` at each hook point. `captured` maps sites to captured values.
    `stepwise` is true in a layer that runs step by step outside jit, because a Python function edits its values. In a
    run that is padded to a longer length, Python functions receive and return values of the true `length`. `columns`
    are the positions and the step that hook functions can read. With a KV cache, `memory` holds the keys and values of
    earlier tokens.
    """

    def __init__(
        self, hooks: tuple[SiteHook, ...] = (), wanted: frozenset[str] = frozenset(), layer=None,
        positions: Positions | None = None, points: Mapping[str, NamedHookPoint] | None = None,
        length: int | None = None, stepwise: bool = False, columns: Any = None, memory: "LayerMemory | None" = None,
    ):  # fmt: skip
        self._hooks, self._wanted, self._positions, self._points = hooks, wanted, positions, points
        self._length, self.layer, self.stepwise, self.prefix = length, layer, stepwise, ""
        self.columns, self.memory = columns, memory
        self.captured: dict[str, jax.Array] = {}

    def at(self, module: str) -> "Tap":
        """The tap of a module in the layer. Names are relative to the module."""
        tap = object.__new__(Tap)  # faster than copy.copy; `captured` stays shared
        vars(tap).update(vars(self), prefix=f"{self.prefix}{module}.")
        return tap

    def without_hooks(self) -> "Tap":
        """A tap in the same layer that neither runs hooks nor captures."""
        return Tap(layer=self.layer)

    def edits(self, name: str) -> bool:
        """Whether a hook may change the value at this point."""
        site = self.prefix + name
        is_concrete = self.layer is None or isinstance(self.layer, int)
        return any(hook.site == site and (not is_concrete or hook.acts_in(self.layer)) for hook in self._hooks)

    def needs(self, name: str) -> bool:
        """Whether the value at this point must exist as an array, because it is captured or may be edited."""
        return self.prefix + name in self._wanted or self.edits(name)

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        """The value after all hooks at this point. It is captured if the plan contains its name."""
        site, is_edited = self.prefix + name, False
        for hook in self._hooks:
            if hook.site == site:
                value, is_edited = self._edited(hook, value), True
        if site in self._wanted:
            is_array = self.stepwise or (site in OF_MATRIX_PRODUCTS and not is_edited)  # stepwise: between two steps
            value = value if is_array else _rounded(value)
            self.captured[site] = value if self._positions is None else self._positions.cut(site, value)
        return value

    def _edited(self, hook: SiteHook, value: jax.Array) -> jax.Array:
        length = self._length if hook.is_plain else None
        columns = None if self.columns is None else Columns(*self.columns, length)
        if length is None:
            return hook(value, self.layer, self._points, columns)
        given = shortened(value, self._axes_of_new_tokens(hook.site), length)
        edited = hook(given, self.layer, self._points, columns)
        return value if edited is given else overwritten(value, edited)

    def _axes_of_new_tokens(self, site: str) -> tuple[int, ...]:
        """The axes with the length of the run. Sources of attention are the slots of a KV cache, unless it is new."""
        is_whole = self.memory is None or self.memory.is_new
        return LENGTH_AXES[site] if is_whole else (POSITION_AXES[site],)


@jax.custom_jvp
def _rounded(value: jax.Array) -> jax.Array:
    """The same value, rounded to its dtype before it is used further.

    A compiler may fuse `x + w * y` into one operation that does not round the product. Then `x` plus the captured
    `w * y` differs from the residual stream. XLA does not fuse multiply-adds across a `where`.
    """
    return jnp.where(value == value, value, jnp.nan) if jnp.issubdtype(value.dtype, jnp.floating) else value


@_rounded.defjvp
def _rounded_jvp(primals, tangents):
    return _rounded(*primals), tangents[0]
