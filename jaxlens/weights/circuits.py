"""The QK and OV circuits of attention heads (Elhage et al. 2021, transformer-circuits.pub/2021/framework), and checks
that an architecture is suitable for an analysis.

Axes: n query head, k key/value head, d d_model, h d_head; "..." an optional axis of layers.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens.config import Config
from jaxlens.weights.factored_matrix import FactoredMatrix


def qk_circuit(cfg: Config, W_Q: Float[Array, "... n d h"], W_K: Float[Array, "... k d h"]) -> FactoredMatrix:
    """`W_Q @ W_K.T` of every query head, [... n d d]: which queries attend to which keys, without rotary positions."""
    require_linear_heads(cfg)
    return FactoredMatrix(W_Q, per_query_head(cfg, W_K, axis=-3).mT)


def ov_circuit(cfg: Config, W_V: Float[Array, "... k d h"], W_O: Float[Array, "... n h d"]) -> FactoredMatrix:
    """`W_V @ W_O` of every query head, [... n d d]: the map from the residual stream at the source to its output."""
    require_linear_heads(cfg)
    return FactoredMatrix(per_query_head(cfg, W_V, axis=-3), W_O)


def per_query_head(cfg: Config, weight: Array, axis: int) -> Array:
    """A weight with one entry per key/value head along `axis`, repeated so that it has one per query head."""
    group = cfg.n_heads // cfg.n_key_value_heads
    return weight if group == 1 else jnp.repeat(weight, group, axis=axis)


def require_linear_heads(cfg: Config) -> None:
    """Raises ValueError for latent attention, where heads do not read the residual stream through linear maps."""
    if cfg.kv_lora_rank is not None:
        reason = "latent attention has no QK and OV circuits and no edges per head, because keys and values pass a norm"
        raise ValueError(f"{reason}; read or patch hook_q, hook_k, hook_v or hook_kv_latent instead")


def require_additive_residual(cfg: Config) -> None:
    """Raises ValueError if the residual stream is not the sum of the outputs written to it."""
    if cfg.norm_placement == "sum" and cfg.normalization_type is not None:
        reason = 'this analysis needs an additive residual stream, but norm_placement="sum" normalizes every sum'
        raise ValueError(f"{reason}; use the decompositions of a cache, or patch hook_resid_mid and hook_resid_post")
