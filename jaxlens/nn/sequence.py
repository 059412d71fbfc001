"""The inputs of the layers besides the residual stream: positions, the padding mask, and constants per layer.

Axes: b batch, p query position, g sequence, t slot of a sequence, s slot of a source, r half of the rotated dimensions,
l layer, z kind of rotary positions. Axes g and t equal b and p, unless rows of several sequences are packed into one
(nn/packing.py). Axis s equals t, unless a KV cache holds earlier tokens (nn/kv_cache.py).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxlens.config import WHOLE_PAST, Config
from jaxlens.nn.kv_cache import Slots
from jaxlens.nn.packing import PADDING, LayerPacking, PackedRows, PackedSequences
from jaxlens.nn.rope import rotary_kinds, rotations

Columns = tuple[Int[Array, "b p"], Int[Array, ""], Int[Array, "b p"]]
"""What hook functions can read besides the value: the positions of its columns, the step of a generation, and the step
in which the token of each column was new."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LayerInfo:
    """The inputs of one layer besides the residual stream.

    The query in slot q attends to the source in slot s if `low[q] < sources[s] <= high[q]`. These are indices of the
    tokens of a sequence, without padding. `sources` is `PADDING` where a slot has no token. Packed rows have two pairs
    of bounds (nn/packing.py). `qk_input` is added to the inputs of queries and keys.
    """

    low: Int[Array, "*i g t"]
    high: Int[Array, "*i g t"]
    sources: Int[Array, "g s"]
    window: Int[Array, ""]
    scale: Float[Array, ""]
    cos: Float[Array, "b p r"] | None
    sin: Float[Array, "b p r"] | None
    qk_input: Float[Array, "b p d"] | None
    growth: Float[Array, "b p"] | None
    packing: LayerPacking | None = None

    @property
    def indices(self) -> tuple[Int[Array, "g t"], Int[Array, "g s"]]:
        """The token indices of queries and of sources."""
        packed = None if self.packing is None else self.packing.indices
        return (self.high, self.sources) if packed is None else packed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SequenceInfo:
    """The inputs of all layers besides the residual stream. Constants of a layer are those of `cfg`.

    `positions` number the tokens of each row from 0 and skip padding, so they do not depend on how a row is padded.
    `indices` are the same, but -1 before the first token, and `sources` are those of the tokens that can be attended
    to, `PADDING` in a slot without a token; packed rows have their own. `cos` and `sin` are the rotation at the
    positions, for each kind of rotary positions. `qk_input` is the position embedding of models that add it to the
    inputs of queries and keys instead of the residual stream (shortformer).

    With a KV cache, `slots` are what it holds after the run, whose first token is in slot `start`, and `step` counts
    the earlier runs. `steps` are the runs in which tokens were new: `step`, unless earlier tokens are run again.
    """

    cfg: Config = dataclasses.field(metadata={"static": True})
    positions: Int[Array, "b p"]
    indices: Int[Array, "g t"] | None
    sources: Int[Array, "g s"] | None
    cos: Float[Array, "z b p r"] | None
    sin: Float[Array, "z b p r"] | None
    qk_input: Float[Array, "b p d"] | None = None
    packing: PackedRows | PackedSequences | None = None
    step: Int[Array, ""] | None = None
    steps: Int[Array, "b p"] | None = None
    slots: Slots | None = None
    start: Int[Array, ""] | None = None
    sees_slots: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def columns(self) -> Columns:
        """What hook functions can read."""
        return self.positions, self.step, self.steps

    def at_layer(self, layer: Int[Array, ""]) -> LayerInfo:
        """The inputs of one layer."""
        cfg, sources = self.cfg, self.sources
        window, scale = jnp.asarray(layer_windows(cfg))[layer], jnp.asarray(layer_scales(cfg))[layer]
        if isinstance(self.packing, PackedRows):
            (low, high), sources = self.packing.bounds(*band(self.packing.indices, window, layer)), self.packing.sources
        else:
            low, high = band(self.indices, window, layer)
        cos = sin = None
        if cfg.rotary_dim:
            kind = jnp.asarray(rotary_kinds(cfg)[1])[layer]
            cos, sin = self.cos[kind], self.sin[kind]
        growth = None
        if cfg.query_growth is not None:
            growth = growth_of_queries(self.positions, *cfg.query_growth, scale.dtype)
        return LayerInfo(
            low, high, sources, window, scale, cos, sin, self.qk_input, growth,
            packing=None if self.packing is None else self.packing.at_layer(layer),
        )  # fmt: skip


def band(indices: Int[Array, "b p"], window: Int[Array, ""], layer: Int[Array, ""]) -> tuple[Array, Array]:
    """The bounds `low` and `high` of the tokens that each query attends to: those with `low < index <= high`.

    `indices` are those of the queries' tokens. `window` counts tokens, including that of the query. `layer` is never
    negative, so it does not change the bounds. But XLA cannot infer that, treats the bounds as layer-dependent, and
    hoists no mask out of the layer loop.
    """
    high = indices + jnp.minimum(layer, 0)
    return high - window, high


def growth_of_queries(positions: Int[Array, "b p"], beta: float, original: int, dtype: Any) -> Float[Array, "b p"]:
    """The factor 1 + β ln(1 + ⌊position / original⌋) on queries (Llama 4, 2025).

    Attention over more sources is flatter. The factor compensates for this beyond the original context.
    """
    return 1 + beta * jnp.log(1 + (positions // original).astype(dtype))


def layer_windows(cfg: Config) -> Int[np.ndarray, "l"]:
    """The number of tokens that a query of each layer attends to, with its own."""
    return np.array([window or WHOLE_PAST for window in cfg.windows], np.int32)


def layer_scales(cfg: Config) -> Float[np.ndarray, "l"]:
    """The divisor of the attention scores of each layer."""
    scale = cfg.attn_scale if cfg.attn_scale is not None else np.sqrt(cfg.d_head)
    depth = np.arange(1, cfg.n_layers + 1) if cfg.scale_attn_by_inverse_layer_idx else np.ones(cfg.n_layers)
    return (scale * depth).astype(np.float64 if cfg.dtype == "float64" else np.float32)


@functools.partial(jax.jit, static_argnames=("cfg",))
def sequence_info(
    cfg: Config, mask: Bool[ArrayLike, "b p"], tokens: Int[ArrayLike, "b p"] | None = None, past: Slots | None = None,
    n_new: ArrayLike | None = None,
) -> SequenceInfo:  # fmt: skip
    """The SequenceInfo of a batch, without a `qk_input`. `mask` is False on padding.

    `past` are the slots of a KV cache, which the first `n_new` of these columns extend.
    """
    indices, lengths = jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, jnp.sum(mask, axis=-1)
    memory: dict[str, Any] = {"step": jnp.int32(0), "steps": jnp.zeros_like(indices)}
    if past is not None:
        indices, lengths = indices + past.n_tokens[:, None], lengths + past.n_tokens
        steps = jnp.broadcast_to(past.steps_of_next(mask.shape[1]), mask.shape)
        memory = {"slots": past.extended(mask, tokens, n_new), "start": past.length, "step": past.step, "steps": steps}
    sees_slots = past is not None and not past.is_new
    sources = memory["slots"].sources if sees_slots else jnp.where(mask, indices, PADDING)
    positions = jnp.maximum(indices, 0)
    cos, sin = rotations(cfg, positions, lengths) if cfg.rotary_dim else (None, None)
    return SequenceInfo(cfg, positions, indices, sources, cos, sin, **memory, sees_slots=sees_slots)
