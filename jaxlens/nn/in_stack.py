"""Weights of a layer that stay in the array of all layers, and the product of a single token with one of them.

Axes: l layer, a input, o output; i rows of W that are summed at once, k groups of such rows; "..." any axes.

XLA multiplies whole arrays only: it copies the weights of a layer out of their stack first. That is quick beside the
product of many tokens, but takes longer than the product of one. A sum of rows it computes where they are:

    x W  =  Σ_k Σ_i x[k, i] W[k, i, :]        the inner sum reads each weight once, and leaves [k o]
"""

import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Shaped

from jaxlens._jax import wide
from jaxlens.nn.module import Module, arrays

MOST_ROWS, FEWEST_ROWS = 16, 4
"""How many rows are summed at once. Each is a term of the program."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class InStack:
    """A weight [...] of the layer with index `i`: a row of `stack`, which is not copied until `array` is called."""

    stack: Shaped[Array, "l ..."]
    i: Int[ArrayLike, ""]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stack.shape[1:]

    @property
    def dtype(self) -> Any:
        return self.stack.dtype

    def array(self) -> Shaped[Array, "..."]:
        return jax.lax.dynamic_index_in_dim(self.stack, self.i, keepdims=False)


def as_array(W: InStack | Array) -> Array:
    return W.array() if isinstance(W, InStack) else W


def layer_in_stack(stack: Module, i, products: bool) -> Module:
    """The layer with index i of a stack, for a computation. The weights of its experts stay in the stack.

    With `products`, so do those that a single token is multiplied with, unless they are divided among devices.
    """
    module = copy.copy(stack)
    for name in stack.children:
        child = arrays(getattr(stack, name))
        if isinstance(child, Module):
            child = layer_in_stack(child, i, products)
        elif child is not None:
            is_divided = jax.typeof(child).sharding.mesh.size > 1
            stays = name in stack.of_experts or (name in stack.products and products and not is_divided)
            child = InStack(child, i) if stays else InStack(child, i).array()
        vars(module)[name] = child
    return module


def one_token(x: Float[Array, "..."], W: InStack) -> Float[Array, "o"]:
    """The product of x with W [... o], whose first axes are those of x. It is summed in float32."""
    return jax.lax.platform_dependent(x, W, cpu=_by_rows, default=_whole)


def _whole(x, W: InStack):
    return jnp.tensordot(x, W.array(), axes=x.ndim)


def _by_rows(x, W: InStack):
    n_inputs, n_layers, n_outputs = x.size, len(W.stack), W.shape[-1]
    n = max(n for n in range(1, MOST_ROWS + 1) if n_inputs % n == 0)
    if n < FEWEST_ROWS:
        return _whole(x, W)
    stack, x = W.stack.reshape(n_layers, -1, n, n_outputs), wide(x.reshape(-1, n))

    def row(j: int) -> Float[Array, "k o"]:
        at = [jnp.asarray(index, jnp.int32) for index in (W.i, 0, j, 0)]
        return wide(jax.lax.dynamic_slice(stack, at, (1, len(x), 1, n_outputs)).reshape(len(x), n_outputs))

    rows = sum(x[:, j, None] * row(j) for j in range(n))
    return (jnp.ones(len(x), rows.dtype) @ rows).astype(W.dtype)
