"""Weights of a layer that stay in the array of all layers, and the product of a single token with one of them.

Axes: l layer, a input, o output; i rows of W that are summed at once, k groups of such rows, n head; "..." any axes.

XLA multiplies whole arrays only: it copies the weights of a layer out of their stack first. That is quick beside the
product of many tokens, but takes longer than the product of one. A sum of rows it computes where they are:

    x W  =  Σ_k Σ_i x[k, i] W[k, i, :]        the inner sum reads each weight once, and leaves [k o]
"""

import copy
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Shaped

from jaxlens._jax import wide
from jaxlens.nn.module import Module, arrays

MOST_ROWS, FEWEST_ROWS = 12, 4
"""How many rows are summed at once. Each is a term of the program."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class InStack:
    """A weight of a layer, or of one of its experts: the array at `indices` of `stack`, not copied until `array`."""

    stack: Any  # an array, or what a transformation of JAX puts in its place
    indices: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stack.shape[len(self.indices) :]

    @property
    def dtype(self) -> Any:
        return self.stack.dtype

    @property
    def is_divided(self) -> bool:
        """Whether several devices hold parts of the stack."""
        return jax.typeof(self.stack).sharding.mesh.size > 1

    def at(self, i: Int[ArrayLike, ""]) -> "InStack":
        """The array at index i of this one."""
        return InStack(self.stack, (*self.indices, i))

    def array(self) -> Shaped[Array, "..."]:
        """A copy. One slice: a slice of the layer first would be an array of its own."""
        return _slice(self.stack, (*self.indices, *[0] * len(self.shape)), self.shape)


def _slice(stack, starts: tuple, shape: tuple[int, ...]):
    """The array of this shape at `starts`, of which the last axes are those of the array."""
    starts = [jnp.asarray(start, jnp.int32) for start in starts]
    sizes = (*[1] * (stack.ndim - len(shape)), *shape)
    return jax.lax.dynamic_slice(stack, starts, sizes).reshape(shape)


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
            child = InStack(child, (i,))
            stays = name in stack.of_experts or (name in stack.products and products and not child.is_divided)
            child = child if stays else child.array()
        vars(module)[name] = child
    return module


def has_experts(stack: Module) -> bool:
    """Whether a layer of the stack has weights of experts."""
    children = (arrays(getattr(stack, name)) for name in stack.children)
    return bool(stack.of_experts) or any(has_experts(child) for child in children if isinstance(child, Module))


@jax.custom_batching.custom_vmap
def one_token(x: Float[Array, "..."], W: InStack) -> Float[Array, "... o"]:
    """The product of x with W [... o], whose axes before the last are those of x. It is summed in float32.

    W may have heads before these axes: then it is the product with the weight of each head.
    """
    return jax.lax.platform_dependent(x, W, cpu=_by_rows, default=_whole)


@one_token.def_vmap
def _one_token_mapped(size: int, is_mapped, x, W: InStack):
    """Several tokens, under `vmap`: their product with a copy of the weight reads it once."""
    axes = [0 if mapped else None for mapped in jax.tree.leaves(is_mapped)]
    leaves, structure = jax.tree.flatten((x, W))
    return jax.vmap(lambda *leaves: _whole(*structure.unflatten(leaves)), axes, axis_size=size)(*leaves), True


def _heads(x, W: InStack) -> tuple[int, ...]:
    return W.shape[: len(W.shape) - x.ndim - 1]


def _whole(x, W: InStack):
    return jnp.matmul(x.reshape(-1), W.array().reshape(*_heads(x, W), -1, W.shape[-1]))


def _by_rows(x, W: InStack):
    n_inputs, n_outputs, heads = x.size, W.shape[-1], _heads(x, W)
    n = max(n for n in range(1, MOST_ROWS + 1) if n_inputs % n == 0)
    if n < FEWEST_ROWS:
        return _whole(x, W)
    groups = (math.prod(heads), n_inputs // n)
    of_layers = W.stack.shape[: len(W.indices)]
    stack, x = W.stack.reshape(*of_layers, *groups, n, n_outputs), wide(x.reshape(-1, n))

    def row(j: int) -> Float[Array, "n k o"]:
        of_groups = jax.lax.slice_in_dim(stack, j, j + 1, axis=-2)
        return wide(_slice(of_groups, (*W.indices, 0, 0, 0, 0), (*groups, 1, n_outputs))[:, :, 0])

    rows = sum(x[:, j, None] * row(j) for j in range(n))
    sums = jnp.matmul(jnp.ones((groups[0], 1, groups[1]), rows.dtype), rows)
    return sums.reshape(*heads, n_outputs).astype(W.dtype)
