"""The arithmetic of weight processing: each function makes one weight, or the few that come from the same ones.

Axes: l layer, d d_model, n query head, k key/value head, h d_head, m d_mlp, v vocabulary, r what a matrix reads, c what
another one reads.

Everything is computed in float32 at least and rounded once, one layer after the other: a stack of half-precision
weights would be twice as large in float32.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def by_layer(one: Callable, stacked: bool, *arrays: Array | None):
    """`one` of each layer's arrays after the other, so that only one layer exists in float32."""
    return jax.lax.map(lambda layer: one(*layer), arrays) if stacked else one(*arrays)


@jax.jit
def transpose(W_E: Float[Array, "v d"]) -> Float[Array, "d v"]:
    return W_E.T


@functools.partial(jax.jit, static_argnames=("stacked",))
def centre(x: Float[Array, "*axes"], stacked: bool = False) -> Float[Array, "*axes"]:
    """x without its mean over the last axis."""

    def one(x):
        return (wide(x) - jnp.mean(wide(x), axis=-1, keepdims=True)).astype(x.dtype)

    return by_layer(one, stacked, x)


@functools.partial(jax.jit, static_argnames=("axis", "stacked", "centre", "offset"))
def fold(W, bias, w, b, *, axis: int, stacked: bool, centre: bool, offset: bool):
    """A linear map and its bias that read what a norm's weight and bias were applied to; `axis` of W is what it reads.

    The sums are of products, not an einsum: that would copy W to bring its axes into another order.
    """

    def one(W, bias, w, b):
        along = (-1, *[1] * (-1 - axis))
        folded = wide(W) * (wide(w) + offset).reshape(along)
        if centre:
            folded = folded - jnp.mean(folded, axis, keepdims=True)
        if b is not None:
            read = jnp.sum(wide(W) * wide(b).reshape(along), axis)
            bias = (read if bias is None else read + bias).astype(W.dtype)
        return folded.astype(W.dtype), bias

    return by_layer(one, stacked, W, bias, w, b)


@jax.jit
def carry_values(
    b_V: Float[Array, "l k h"], W_O: Float[Array, "l n h d"], b_O: Float[Array, "l d"] | None
) -> Float[Array, "l d"]:
    """What the value biases write through W_O, and b_O."""

    def one(b_V, W_O, b_O):
        grouped = wide(W_O).reshape(len(b_V), -1, *W_O.shape[1:])
        written = jnp.sum(grouped * wide(b_V)[:, None, :, None], axis=(0, 1, 2))
        return (written if b_O is None else written + b_O).astype(W_O.dtype)

    return by_layer(one, True, b_V, W_O, b_O)


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

    return by_layer(one, True, W_Q, W_K, b_Q, b_K)


@jax.jit
def turn_values(W_V, W_O):
    """W_V [l n d h] and W_O [l n h d] with the same products, W_O with orthonormal rows."""

    def one(W_V, W_O):
        U, S, V = singular_factors(wide(W_V), wide(W_O).mT)
        return (U * S[:, None]).astype(W_V.dtype), V.mT.astype(W_O.dtype)

    return by_layer(one, True, W_V, W_O)
