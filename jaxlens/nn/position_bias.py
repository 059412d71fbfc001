"""Position biases, which are added to attention scores and depend on the positions of the query and the key.

A bias is computed inside the fusion that computes the scores, and never exists as an array. Attention calls it as
`bias(query_indices, key_indices, n_groups, scale)`; a new kind of bias is another class with that method.

Axes: b batch, p query position, s source position, k key/value head, g query heads per key/value head.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlens.config import Config


def position_bias(cfg: Config) -> "Alibi | None":
    """The position bias of a model, or None."""
    return Alibi(cfg.alibi_slopes, cfg.alibi_in_bfloat16) if cfg.positional_embedding_type == "alibi" else None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Alibi:
    """Scores fall linearly with distance, with a different slope in each head (Press et al. 2021, arXiv 2108.12409).

    `in_bfloat16` rounds slope × index to bfloat16 and divides by the scale of the scores, as in the training of some
    checkpoints.
    """

    slopes: tuple[float, ...]
    in_bfloat16: bool = False

    def __call__(
        self, query_indices: Int[Array, "b p"], key_indices: Int[Array, "b s"], n_groups: int, scale: Float[Array, ""]
    ) -> Float[Array, "b k g p s"]:
        dtype = jnp.promote_types(scale.dtype, jnp.float32)
        slope = jnp.array(self.slopes, dtype).reshape(n_groups, -1, 1, 1)
        keys = key_indices[:, None, None, None].astype(dtype)
        queries = query_indices[:, None, None, :, None].astype(dtype)
        if self.in_bfloat16:
            return (_bfloat16_product(slope, keys) - _bfloat16_product(slope, queries)) / scale
        return slope * (keys - queries)


def _bfloat16_product(slope, index):
    """slope × index with all three numbers rounded to bfloat16. XLA may drop casts, but not `reduce_precision`."""
    to_bfloat16 = functools.partial(jax.lax.reduce_precision, exponent_bits=8, mantissa_bits=7)
    return to_bfloat16(to_bfloat16(slope) * to_bfloat16(index))
