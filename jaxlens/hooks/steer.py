"""Hooks that add a direction to activations: steering, also while text is generated.

Axes: b batch, p position, d the last axes of the value, such as d_model.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxlens.hooks.api import DataHook, hook

Which = Literal["all", "prompt", "new", "last"]


@dataclasses.dataclass(frozen=True)
class Steering:
    """The function of the hooks that `steer` makes. It reads positions from the hook point, so padding does not matter.

    Equal objects share compiled programs.
    """

    which: Which | None
    schedule: Callable | None = None

    def __call__(self, value: Array, hook: Any, direction, strength, positions, rows) -> Array:
        if self.schedule is not None:
            strength = strength * self.schedule(hook.step)
        strength = jnp.reshape(strength, (-1, *[1] * (value.ndim - 1)))
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
                return jnp.broadcast_to((hook.step == 0) == (self.which == "prompt"), at.shape)
            case "last":
                return (hook.step == 0) & (at == jnp.max(at, axis=-1, keepdims=True))
        return (at[..., None] == jnp.asarray(positions)).any(-1)


def steer(
    direction: Float[ArrayLike, "*b d"], layers: int | Iterable[int], *, strength: Any = 1.0,
    positions: Which | Iterable[int] = "all", rows: Iterable[int] | None = None, site: str = "hook_resid_post",
) -> list[tuple[str, DataHook]]:  # fmt: skip
    """Hooks that add `strength * direction` to the residual stream after these layers, for `fwd_hooks=`.

    `direction` is one vector [d_model], or one for each row [batch d_model]. `strength` is a number, one number for
    each row, or a function of the step of a generation (0 on the prompt, then 1, 2, …), which is traced. `positions` is
    "all", "prompt", "new" (generated tokens), "last" (the last token of the prompt), or positions in the text, counted
    from 0 without padding. `rows` are the rows of the batch (None: all). `site` is another site of the blocks: the last
    axes of `direction` are then those of its values, after batch and position.

    Other directions, strengths, rows and layers compile nothing.

    Raises:
        ValueError: `positions` is another string, or there is no layer.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(
        ...     jaxlens.Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8, attn_only=True))
        >>> hooks = jaxlens.steer(jnp.ones(8), layers=1, strength=3.0, positions="new")
        >>> text = model.generate([[1, 2]], 3, stop_at_eos=False, fwd_hooks=hooks)
    """
    if isinstance(positions, str) and positions not in ("all", "prompt", "new", "last"):
        raise ValueError(f'positions is {positions!r}; expected "all", "prompt", "new", "last" or integers')
    layers = [layers] if isinstance(layers, int | np.integer) else list(layers)
    if not layers:
        raise ValueError("layers is empty; give at least one layer")
    which = positions if isinstance(positions, str) else None
    steering = Steering(which, strength if callable(strength) else None)
    edit = hook(
        steering, direction=jnp.asarray(direction), strength=jnp.float32(1) if callable(strength) else
        jnp.asarray(strength), positions=None if which else np.atleast_1d(np.asarray(positions, np.int32)), rows=None if
        rows is None else np.atleast_1d(np.asarray(rows, np.int32)),
    )  # fmt: skip
    return [(f"blocks.{layer}.{site}", edit) for layer in layers]
