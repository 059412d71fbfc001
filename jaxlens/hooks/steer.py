"""Hooks that add a direction to activations: steering, also while text is generated.

Axes: b batch, p position, d the last axes of the value, such as d_model.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from jaxlens._jax import is_traced, wide
from jaxlens.hooks.api import DataHook, hook
from jaxlens.hooks.table import POSITION_AXES

Which = Literal["all", "prompt", "new", "last"]


@dataclasses.dataclass(frozen=True)
class Steering:
    """The function of the hooks that `steer` makes. It reads positions from the hook point, so padding does not matter.

    Equal objects share compiled programs.
    """

    which: Which | None
    schedule: Callable | None = None

    def __call__(self, value: Array, hook: Any, direction, strength, positions, rows) -> Array:
        strength = jnp.reshape(strength, (-1, 1))
        if self.schedule is not None:
            strength = strength * jax.vmap(jax.vmap(self.schedule))(hook.steps)
        strength = jnp.expand_dims(strength, tuple(range(2, value.ndim)))
        direction = direction if direction.ndim == value.ndim - 1 else direction[None]
        added = (strength * direction[:, None]).astype(value.dtype)
        acts = self._acts(hook, positions)
        if rows is not None:
            acts &= jnp.isin(jnp.arange(len(value)), rows)[:, None]
        return jnp.where(jnp.expand_dims(acts, tuple(range(2, value.ndim))), value + added, value)

    def _acts(self, hook: Any, positions: ArrayLike | None):
        """Whether each column [b p] is steered."""
        at = hook.positions
        match self.which:
            case "all":
                return jnp.ones(at.shape, bool)
            case "prompt" | "new":
                return hook.steps == 0 if self.which == "prompt" else hook.steps > 0
            case "last":
                of_prompt = hook.steps == 0
                return of_prompt & (at == jnp.max(jnp.where(of_prompt, at, -1), axis=-1, keepdims=True))
        positions = jnp.atleast_2d(positions)[:, None]  # the same for all rows [1 1 i], or those of each row [b 1 i]
        return (at[..., None] == positions).any(-1)


def at_positions(edit: DataHook, positions: Int[Array, "b i"]) -> DataHook:
    """A hook of `steer` that acts at these positions of each row instead."""
    return hook(Steering(None, edit.func.schedule), **{**edit.keywords, "positions": positions})


def steer(
    direction: Float[ArrayLike, "*b d"], layers: int | Iterable[int], *, strength: Any = 1.0,
    positions: Which | Iterable[int] = "all", rows: Iterable[int] | None = None, site: str = "hook_resid_post",
) -> list[tuple[str, DataHook]]:  # fmt: skip
    """Hooks that add `strength * direction` to the residual stream after these layers, for `fwd_hooks=`.

    `direction` is one vector [d_model], or one for each row [batch d_model]. `strength` is a number, one number for
    each row, or a function of the step of a generation (0 on the prompt, then 1, 2, …), which is traced. `positions` is
    "all", "prompt", "new" (generated tokens), "last" (the last token of the prompt), or positions in the text, counted
    from 0 without padding. `rows` are the rows of the batch that are steered (None: all); a batch may have fewer.
    `site` is another site of the blocks: the last axes of `direction` are then those of its values, after batch and
    position.

    Other directions, strengths, positions, rows and layers compile nothing. With more than 8 positions or rows, a
    program is compiled for each power of two.

    Raises:
        ValueError: `positions` is another string, positions or rows are negative or missing, `site` has no position
            after the batch, a strength is not finite, or there is no layer.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(
        ...     jaxlens.Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8, attn_only=True))
        >>> hooks = jaxlens.steer(jnp.ones(8), layers=1, strength=3.0, positions="new")
        >>> text = model.generate([[1, 2]], 3, stop_at_eos=False, fwd_hooks=hooks)
    """
    if isinstance(positions, str) and positions not in ("all", "prompt", "new", "last"):
        raise ValueError(f'positions is {positions!r}; expected "all", "prompt", "new", "last" or integers')
    which = positions if isinstance(positions, str) else None
    positions = None if which else np.atleast_1d(np.asarray(positions, np.int32))
    if positions is not None and (not positions.size or positions.min() < 0):
        raise ValueError(f'positions is {positions.tolist()}; expected integers from 0, or "last" for the last token')
    if POSITION_AXES.get(site, 1) != 1:
        raise ValueError(f"site is {site!r}, whose values have heads before positions; expected a site such as hook_z")
    layers = [layers] if isinstance(layers, int | np.integer) else list(layers)
    if not layers:
        raise ValueError("layers is empty; give at least one layer")
    direction = wide(jnp.asarray(direction))
    schedule, strength = (strength, 1) if callable(strength) else (None, strength)
    strength = jnp.asarray(strength, direction.dtype)  # numbers of all types share compiled programs
    if not is_traced(strength) and not jnp.isfinite(strength).all():
        raise ValueError(f"strength is {strength}; expected finite numbers")
    rows = None if rows is None else np.atleast_1d(np.asarray(rows, np.int32))
    if rows is not None and (not rows.size or rows.min() < 0):
        raise ValueError(f"rows is {rows.tolist()}; expected rows of the batch, counted from 0")
    positions, rows = _repeated(positions), _repeated(rows)
    data = {"direction": direction, "strength": strength, "positions": positions, "rows": rows}
    edit = hook(Steering(which, schedule), **data)
    return [(f"blocks.{layer}.{site}", edit) for layer in layers]


def _repeated(numbers: Int[np.ndarray, "*b i"] | None) -> Int[np.ndarray, "*b n"] | None:
    """The numbers with the last one repeated, up to 8 or the next power of two, so that programs are shared."""
    if numbers is None:
        return None
    length = max(8, 1 << (numbers.shape[-1] - 1).bit_length())
    return numbers[..., np.minimum(np.arange(length), numbers.shape[-1] - 1)]
