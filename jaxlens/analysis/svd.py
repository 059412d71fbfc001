"""Singular vectors of weights, read through the unembedding.

Axes: d d_model, h d_head, m d_mlp, r rows of the matrix that is decomposed, i singular vector, v vocabulary.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

VECTOR_TYPES = ("OV", "w_in", "w_out")


class SVDInterpreter:
    """What the strongest directions of a weight matrix mean as words.

    They are directions of the residual stream: what an OV circuit or `w_out` writes, what `w_in` reads. After Millidge
    & Black 2022, "The singular value decompositions of transformer weight matrices are highly interpretable".

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
        self,
        vector_type: Literal["OV", "w_in", "w_out"],
        layer_index: int,
        num_vectors: int = 10,
        head_index: int | None = None,
    ) -> Float[Array, "v 1 i"]:
        """The `num_vectors` strongest singular vectors of a matrix of a layer, each as logits of all tokens.

        "OV" is the circuit of head `head_index`, "w_in" and "w_out" are the MLP's weights (gated: of the linear half).
        `w_in` is read with the weight of the norm before it; the final norm's weight is not applied to the unembedding:
        fold it first. The sign of a singular vector means nothing; here its entry of largest size is positive.

        Raises:
            ValueError: no such matrix, or it has fewer singular vectors.
        """
        if vector_type not in VECTOR_TYPES:
            raise ValueError(f"vector_type is {vector_type!r}; wanted one of {', '.join(map(repr, VECTOR_TYPES))}")
        if not 0 <= layer_index < self.cfg.n_layers:
            raise ValueError(f"layer_index is {layer_index}; wanted 0 to {self.cfg.n_layers - 1}")
        if vector_type == "OV":
            if head_index is None or not 0 <= head_index < self.cfg.n_heads:
                raise ValueError(f"head_index is {head_index}; an OV circuit needs one, 0 to {self.cfg.n_heads - 1}")
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
            has = "no MLP" if weight is None else f"{len(weight)} experts"
            raise ValueError(f"{vector_type} is the weight of one MLP; layer {layer} has {has}")
        if vector_type == "w_out":
            return weight
        norm = block.ln1 if self.cfg.shared_norm else block.ln2
        w = getattr(norm, "w", None)
        scale = 1.0 if w is None else 1 + w if self.cfg.rmsnorm_uses_offset else w
        return weight.T * scale


@jax.jit
def _right_singular_vectors(matrix: Float[Array, "m d"]) -> Float[Array, "d i"]:
    wide = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
    return jnp.linalg.svd(wide, full_matrices=False)[2].T


@jax.jit
def _as_logits(vectors: Float[Array, "d i"], W_U: Float[Array, "d v"]) -> Float[Array, "v 1 i"]:
    """What each vector adds to the logits, with the sign under which its entry of largest size is positive."""
    largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), axis=0, keepdims=True), axis=0)
    return jnp.einsum("di,dv->vi", vectors * jnp.sign(largest), W_U, precision="highest")[:, None]
