"""What the layers know of a sequence besides the residual stream: positions, padding, and each layer's own numbers.

Axes: b batch, p query position, g sequence, t slot of a sequence, r half of the rotated dimensions, l layer. Sequences
and slots are the batch and its positions, unless rows of several sequences are packed into one (nn/packing.py).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlens.config import WHOLE_PAST, Config
from jaxlens.nn.masks import band
from jaxlens.nn.packing import LayerPacking, Packing
from jaxlens.nn.positions import rotary_tables


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerContext:
    """What one layer makes of the sequence: whom each query sees, how far positions turn, how scores are scaled."""

    low: Int[Array, "t"]
    high: Int[Array, "t"]
    real: Bool[Array, "g t"]
    window: Int[Array, ""]
    scale: Float[Array, ""]
    cos: Float[Array, "b p r"] | None
    sin: Float[Array, "b p r"] | None
    pos_embed: Float[Array, "b p d"] | None
    places: Int[Array, "g t"] | None
    growth: Float[Array, "b p"] | None
    packing: LayerPacking | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What all layers share of a sequence.

    `slots` number the columns of the input; `positions` number the real tokens of each row from 0, so that a row means
    the same however it is padded; `real` is False on padding. The rest has one entry per layer. `pos_embed` is set only
    where queries and keys, not the residual stream, get the position embedding (shortformer).
    """

    slots: Int[Array, "t"]
    positions: Int[Array, "b p"]
    real: Bool[Array, "g t"]
    windows: Int[Array, "l"]
    scales: Float[Array, "l"]
    frequencies: Float[Array, "l r"] | None
    rotary_factors: Float[Array, "l"] | None
    query_growth: tuple[float, int] | None = dataclasses.field(default=None, metadata={"static": True})
    measures_distance: bool = dataclasses.field(default=False, metadata={"static": True})
    pos_embed: Float[Array, "b p d"] | None = None
    packing: Packing | None = None

    def at_layer(self, layer: Int[Array, ""]) -> LayerContext:
        """This sequence as `layer` sees it."""
        window = self.windows[layer]
        low, high = band(self.slots, window, layer)
        cos = sin = None
        if self.frequencies is not None:
            angles = self.positions[..., None].astype(jnp.float32) * self.frequencies[layer]
            cos, sin = (turn(angles) * self.rotary_factors[layer] for turn in (jnp.cos, jnp.sin))
        packing = None if self.packing is None else self.packing.at_layer(layer)
        places = self.places(layer) if self.measures_distance else None
        scale = self.scales[layer]
        growth = None if self.query_growth is None else growth_of_queries(self.positions, *self.query_growth)
        return LayerContext(low, high, self.real, window, scale, cos, sin, self.pos_embed, places, growth, packing)

    def places(self, layer: Int[Array, ""]) -> Int[Array, "g t"]:
        """Where every slot stands among the real tokens of its sequence, from 0. As in `masks.band`, `layer` only keeps
        XLA from making all distances once for all layers, as an array [t t]."""
        return jnp.cumsum(self.real, axis=-1, dtype=jnp.int32) - 1 + jnp.minimum(layer, 0)


def layer_scales(cfg: Config) -> np.ndarray:
    """What each layer's attention scores are divided by."""
    scale = cfg.attn_scale if cfg.attn_scale is not None else np.sqrt(cfg.d_head)
    depth = np.arange(1, cfg.n_layers + 1) if cfg.scale_attn_by_inverse_layer_idx else np.ones(cfg.n_layers)
    return (scale * depth).astype(np.float64 if cfg.dtype == "float64" else np.float32)


def growth_of_queries(positions: Int[Array, "b p"], beta: float, original: int) -> Float[Array, "b p"]:
    """1 + β ln(1 + ⌊position / original⌋): what queries past the original context are multiplied by, as attention over
    more sources is flatter (Llama 4, 2025)."""
    return 1 + beta * jnp.log(1 + (positions // original).astype(jnp.float32))


@functools.partial(jax.jit, static_argnames=("cfg",))
def make_context(cfg: Config, real: Bool[Array, "b p"]) -> Context:
    """The Context of a batch whose real tokens are marked; positions count them from 0 in each row."""
    positions = jnp.maximum(jnp.cumsum(real, axis=-1, dtype=jnp.int32) - 1, 0)
    windows = np.array([window or WHOLE_PAST for window in cfg.windows], np.int32)
    frequencies, factors = rotary_tables(cfg, jnp.max(positions) + 1) if cfg.rotary_dim else (None, None)
    return Context(
        slots=jnp.arange(real.shape[1], dtype=jnp.int32),
        positions=positions,
        real=real,
        windows=jnp.asarray(windows),
        scales=jnp.asarray(layer_scales(cfg)),
        frequencies=frequencies,
        rotary_factors=factors,
        query_growth=cfg.query_growth,
        measures_distance=cfg.positional_embedding_type == "alibi",
    )
