"""Singular vectors of weight matrices, read as tokens through the unembedding.

Axes: d d_model, m d_mlp, i singular vector, v vocabulary.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens._jax import in_full_precision, wide
from jaxlens._jax.explicit_axes import on_any_mesh

OUTPUT_EMBEDDING = "unembed.W_U"
VECTOR_TYPES = ("OV", "w_in", "w_out")


@in_full_precision
class SVDInterpreter:
    """The strongest directions of a weight matrix in the residual stream, read as tokens.

    An OV circuit and `w_out` write these directions to the residual stream, and `w_in` reads them. The method is from
    Millidge & Black 2022, "The singular value decompositions of transformer weight matrices are highly interpretable".

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> SVDInterpreter(model).get_singular_vectors("OV", layer_index=1, head_index=0, num_vectors=3).shape
        (10, 1, 3)
    """

    def __init__(self, model: Any):
        self.model, self.cfg = model, model.cfg

    def get_singular_vectors(
        self, vector_type: Literal["OV", "w_in", "w_out"], layer_index: int, num_vectors: int = 10,
        head_index: int | None = None,
    ) -> Float[Array, "v 1 i"]:  # fmt: skip
        """The `num_vectors` strongest singular vectors of a weight matrix, each as logits of all tokens.

        "OV" is the circuit of head `head_index`. "w_in" and "w_out" are the MLP's weights; in a gated MLP, "w_in" is
        the linear half, not the gate. "w_in" is multiplied by the weight of the norm before it. The weight of the final
        norm is not applied to the unembedding; fold it first. The sign of a singular vector is arbitrary; it is chosen
        to make the component of largest absolute value positive.

        Raises:
            ValueError: There is no such matrix, or it has fewer than `num_vectors` singular vectors.
        """
        if vector_type not in VECTOR_TYPES:
            raise ValueError(f"vector_type is {vector_type!r}; expected one of {', '.join(map(repr, VECTOR_TYPES))}")
        if not 0 <= layer_index < self.cfg.n_layers:
            raise ValueError(f"layer_index is {layer_index}; expected 0 to {self.cfg.n_layers - 1}")
        if vector_type == "OV":
            if head_index is None or not 0 <= head_index < self.cfg.n_heads:
                raise ValueError(f"head_index is {head_index}; for OV expected 0 to {self.cfg.n_heads - 1}")
            vectors = self.model.OV[layer_index, head_index].V
        else:
            vectors = _right_singular_vectors(self._mlp_weight(vector_type, layer_index))
        if not 1 <= num_vectors <= vectors.shape[1]:
            raise ValueError(f"num_vectors is {num_vectors}; the matrix has {vectors.shape[1]} singular vectors")
        return _as_logits(vectors[:, :num_vectors], self.model.W_U)

    def _mlp_weight(self, vector_type: str, layer: int) -> Float[Array, "m d"]:
        block = self.model.blocks[layer]
        weight = getattr(block.mlp, {"w_in": "W_in", "w_out": "W_out"}[vector_type], None)
        if weight is None or weight.ndim != 2:
            reason = "has no MLP" if weight is None else f"has {len(weight)} experts"
            raise ValueError(f"{vector_type} needs a layer with one MLP; layer {layer} {reason}")
        if vector_type == "w_out":
            return weight
        norm = block.ln1 if self.cfg.shared_norm else block.ln2
        multiplier = getattr(norm, "multiplier", None)
        return weight.T if multiplier is None else weight.T * multiplier


@on_any_mesh
@jax.jit
def _right_singular_vectors(matrix: Float[Array, "m d"]) -> Float[Array, "d i"]:
    return jnp.linalg.svd(wide(matrix), full_matrices=False)[2].T


@on_any_mesh
@jax.jit
def _as_logits(vectors: Float[Array, "d i"], W_U: Float[Array, "d v"]) -> Float[Array, "v 1 i"]:
    """The logits of each vector, with the sign that makes its component of largest absolute value positive."""
    largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), axis=0, keepdims=True), axis=0)
    return jnp.einsum("di,dv->vi", vectors * jnp.sign(largest), W_U)[:, None]
