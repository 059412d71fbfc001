"""The arithmetic of weight processing, in float32 at least; what is as large as a weight is rounded to its dtype.

Axes: l layer, d d_model, n query head, k key/value head, h d_head, m d_mlp, v vocabulary, r what a matrix reads, c what
another one reads.

Sums over a weight, and weights made with them, are programs of their own: in one program, XLA would keep the weight in
float32 from the first to the second. The sums are of products and not einsums, which would copy the weight to bring its
axes into another order.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def along(axis: int, vectors: Float[Array, "*l d"], W: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """A vector, or one for each layer, as it is multiplied to `axis` of W."""
    shape = [1] * W.ndim
    shape[: vectors.ndim - 1] = vectors.shape[:-1]
    shape[axis] = vectors.shape[-1]
    return wide(vectors).reshape(shape)


def scaled(W: Float[Array, "*axes"], w: Float[Array, "*l d"] | None, axis: int, offset: bool) -> Float[Array, "*axes"]:
    """W times the weight of a norm, w or 1 + w, along the axis that reads it; None is a weight of ones."""
    return wide(W) if w is None else wide(W) * (along(axis, w, W) + offset)


@jax.jit
def transpose(W_E: Float[Array, "v d"]) -> Float[Array, "d v"]:
    return W_E.T


@functools.partial(jax.jit, static_argnames=("axis", "offset"))
def mean_of(W: Float[Array, "*axes"], w: Float[Array, "*l d"] | None, axis: int, offset: bool) -> Float[Array, "*axes"]:
    """The mean of `scaled` over that axis, of which one entry is left."""
    return jnp.mean(scaled(W, w, axis, offset), axis, keepdims=True)


@functools.partial(jax.jit, static_argnames=("axis", "offset"))
def scale(
    W: Float[Array, "*axes"], w: Float[Array, "*l d"] | None, mean: Float[Array, "*axes"] | float, axis: int,
    offset: bool,
) -> Float[Array, "*axes"]:  # fmt: skip
    """`scaled`, less its mean."""
    return (scaled(W, w, axis, offset) - mean).astype(W.dtype)


def fold(W, w, axis: int, centre: bool, offset: bool = False) -> Float[Array, "*axes"]:
    """Linear maps that take up the weight of the norm that `axis` of them reads, and have no mean there if asked."""
    return scale(W, w, mean_of(W, w, axis, offset) if centre else 0.0, axis, offset)


def centre(W: Float[Array, "*axes d"]) -> Float[Array, "*axes d"]:
    """W without its mean over the last axis."""
    return fold(W, None, -1, centre=True)


@functools.partial(jax.jit, static_argnames=("axis",))
def fold_bias(
    W: Float[Array, "*axes"], b: Float[Array, "*l d"], bias: Float[Array, "*others"] | None, axis: int
) -> Float[Array, "*others"]:
    """The biases of linear maps whose input had b added to it; None are biases of zero."""
    read = jnp.sum(wide(W) * along(axis, b, W), axis)
    return (read if bias is None else read + bias).astype(W.dtype)


@jax.jit
def fold_values(
    W_O: Float[Array, "l n h d"], b_V: Float[Array, "l k h"], b_O: Float[Array, "l d"] | None
) -> Float[Array, "l d"]:
    """b_O and what every head writes that gathers b_V."""
    layers, groups, _ = b_V.shape
    grouped = wide(W_O).reshape(layers, groups, -1, *W_O.shape[2:])
    written = jnp.sum(grouped * wide(b_V)[:, :, None, :, None], axis=(1, 2, 3))
    return (written if b_O is None else written + b_O).astype(W_O.dtype)


def singular_factors(A: Float[Array, "n r h"], B: Float[Array, "n c h"]):
    """U [n r h], S [n h] and V [n c h] of every head's A B^T, by way of a product of d_head by d_head."""
    (Q_A, R_A), (Q_B, R_B) = jnp.linalg.qr(A), jnp.linalg.qr(B)
    inner = jnp.einsum("nih,njh->nij", R_A, R_B, precision="highest")
    u, S, vT = jnp.linalg.svd(inner, full_matrices=False)
    U = jnp.einsum("nri,nij->nrj", Q_A, u, precision="highest")
    V = jnp.einsum("nci,nji->ncj", Q_B, vT, precision="highest")
    missing = [(0, 0), (0, A.shape[-1] - S.shape[-1])]  # where a head is wider than what it reads
    return jnp.pad(U, [(0, 0), *missing]), jnp.pad(S, missing), jnp.pad(V, [(0, 0), *missing])


@jax.jit
def even_queries_and_keys(W_Q, W_K, b_Q, b_K):
    """W_Q [l n d h] and W_K with the same products and columns of equal norms; a bias is a last row."""

    def one(W_Q, W_K, b_Q, b_K):
        A, B = (wide(W) if b is None else jnp.concatenate((wide(W), wide(b)[:, None]), 1)
                for W, b in ((W_Q, b_Q), (W_K, b_K)))  # fmt: skip
        U, S, V = singular_factors(A, B)
        d, root = W_Q.shape[1], jnp.sqrt(S)[:, None]
        evened = (U * root).astype(W_Q.dtype), (V * root).astype(W_K.dtype)
        biases = (None if b is None else even[:, d] for even, b in zip(evened, (b_Q, b_K), strict=True))
        return *(even[:, :d] for even in evened), *biases

    return jax.lax.map(lambda layer: one(*layer), (W_Q, W_K, b_Q, b_K))  # a layer at a time: they are large


@jax.jit
def turn_values(W_V, W_O):
    """W_V [l n d h] and W_O [l n h d] with the same products, W_O with orthonormal rows."""

    def one(W_V, W_O):
        U, S, V = singular_factors(wide(W_V), wide(W_O).mT)
        return (U * S[:, None]).astype(W_V.dtype), V.mT.astype(W_O.dtype)

    return jax.lax.map(lambda layer: one(*layer), (W_V, W_O))
