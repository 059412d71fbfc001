"""The arithmetic of weight processing, in float32 or wider. Results the size of a weight are rounded to its dtype.

Axes: l layer, d d_model, n query head, k key/value head, h d_head, m d_mlp, v vocabulary, r and c the rows of two
factors.

A sum over a weight and the new weight that uses the sum are computed by two jitted functions. In a single function, XLA
would keep a float32 copy of the weight between the two steps. The sums are written as `sum(a * b)`, because an einsum
would copy the weight to reorder its axes.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens._jax import wide


def broadcast_along(axis: int, vectors: Float[Array, "*l d"], W: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """Vectors [d] or [l d], reshaped so that d broadcasts along `axis` of W."""
    shape = [1] * W.ndim
    shape[: vectors.ndim - 1] = vectors.shape[:-1]
    shape[axis] = vectors.shape[-1]
    return wide(vectors).reshape(shape)


def times_norm_weight(
    W: Float[Array, "*axes"], w: Float[Array, "*l d"] | None, axis: int, offset: bool
) -> Float[Array, "*axes"]:
    """W times the weight of a norm along `axis`. That weight is w, or 1 + w with `offset`; a w of None means ones."""
    return wide(W) if w is None else wide(W) * (broadcast_along(axis, w, W) + offset)


@jax.jit
def transpose(W_E: Float[Array, "v d"]) -> Float[Array, "d v"]:
    return W_E.T


@functools.partial(jax.jit, static_argnames=("axis", "offset"))
def mean_of(W: Float[Array, "*axes"], w: Float[Array, "*l d"] | None, axis: int, offset: bool) -> Float[Array, "*axes"]:
    """The mean of `times_norm_weight` over `axis`, which keeps length 1."""
    return jnp.mean(times_norm_weight(W, w, axis, offset), axis, keepdims=True)


@functools.partial(jax.jit, static_argnames=("axis", "offset"))
def times_norm_weight_centred(
    W: Float[Array, "*axes"], w: Float[Array, "*l d"] | None, mean: Float[Array, "*axes"] | float, axis: int,
    offset: bool,
) -> Float[Array, "*axes"]:  # fmt: skip
    """`times_norm_weight` minus `mean`."""
    return (times_norm_weight(W, w, axis, offset) - mean).astype(W.dtype)


def fold(W, w, axis: int, centre: bool, offset: bool = False) -> Float[Array, "*axes"]:
    """Folds the weight of a norm into `axis` of W; with `centre`, also subtracts the mean over that axis."""
    return times_norm_weight_centred(W, w, mean_of(W, w, axis, offset) if centre else 0.0, axis, offset)


def centre(W: Float[Array, "*axes d"]) -> Float[Array, "*axes d"]:
    """W minus its mean over the last axis."""
    return fold(W, None, -1, centre=True)


@functools.partial(jax.jit, static_argnames=("axis",))
def fold_bias(
    W: Float[Array, "*axes"], b: Float[Array, "*l d"], bias: Float[Array, "*others"] | None, axis: int
) -> Float[Array, "*others"]:
    """The biases that follow W, plus the effect of b, the bias of the norm before W. A `bias` of None means zeros."""
    folded = jnp.sum(wide(W) * broadcast_along(axis, b, W), axis)
    return (folded if bias is None else folded + bias).astype(W.dtype)


@jax.jit
def fold_values(
    W_O: Float[Array, "l n h d"], b_V: Float[Array, "l k h"], b_O: Float[Array, "l d"] | None
) -> Float[Array, "l d"]:
    """b_O plus the output of all heads for the value b_V. A b_O of None means zeros."""
    # W_O keeps its axis of heads, which a mesh may divide. Grouped heads might not be divided in the same way.
    of_heads = jnp.repeat(wide(b_V), W_O.shape[1] // b_V.shape[1], axis=1)
    written = jnp.sum(wide(W_O) * of_heads[..., None], axis=(1, 2))
    return (written if b_O is None else written + b_O).astype(W_O.dtype)


def singular_factors(A: Float[Array, "n r h"], B: Float[Array, "n c h"]):
    """The SVD of every head's A B^T: U [n r h], S [n h] and V [n c h]. It decomposes only a d_head by d_head matrix."""
    (Q_A, R_A), (Q_B, R_B) = jnp.linalg.qr(A), jnp.linalg.qr(B)
    inner = jnp.einsum("nih,njh->nij", R_A, R_B)
    u, S, vT = jnp.linalg.svd(inner, full_matrices=False)
    U = jnp.einsum("nri,nij->nrj", Q_A, u)
    V = jnp.einsum("nci,nji->ncj", Q_B, vT)
    missing = [(0, 0), (0, A.shape[-1] - S.shape[-1])]  # zeros unless d_head > d_model
    return jnp.pad(U, [(0, 0), *missing]), jnp.pad(S, missing), jnp.pad(V, [(0, 0), *missing])


@jax.jit
def balance_queries_and_keys(W_Q, W_K, b_Q, b_K):
    """W_Q [l n d h], W_K and their biases with the same products, from a singular value decomposition.

    Corresponding columns have equal norms. A bias counts as a last row of its weight.
    """

    def balance_layer(W_Q, W_K, b_Q, b_K):
        A, B = (wide(W) if b is None else jnp.concatenate((wide(W), wide(b)[:, None]), 1)
                for W, b in ((W_Q, b_Q), (W_K, b_K)))  # fmt: skip
        U, S, V = singular_factors(A, B)
        d, root = W_Q.shape[1], jnp.sqrt(S)[:, None]
        balanced = (U * root).astype(W_Q.dtype), (V * root).astype(W_K.dtype)
        biases = (None if b is None else half[:, d] for half, b in zip(balanced, (b_Q, b_K), strict=True))
        return *(half[:, :d] for half in balanced), *biases

    # One layer at a time, to save memory.
    return jax.lax.map(lambda layer: balance_layer(*layer), (W_Q, W_K, b_Q, b_K))


@jax.jit
def rotate_values(W_V, W_O):
    """W_V [l n d h] and W_O [l n h d] with an unchanged product, where the rows of W_O are orthonormal."""

    def rotate_layer(W_V, W_O):
        U, S, V = singular_factors(wide(W_V), wide(W_O).mT)
        return (U * S[:, None]).astype(W_V.dtype), V.mT.astype(W_O.dtype)

    return jax.lax.map(lambda layer: rotate_layer(*layer), (W_V, W_O))
