"""Weights that stay in the stack of layers, and products of a single token with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import model
from test_models import close

from jaxlens.nn.in_stack import InStack, as_array, layer_in_stack, one_token

SPEC = jax.sharding.PartitionSpec(None, None, None)


def drawn(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


SHAPES = ((64, 7), (36, 5), (40, 1), (7, 3), (1, 4), (22, 8), (3, 6, 10), (9, 64, 24), (1, 1, 2))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_product_of_a_token_with_a_weight_in_a_stack(shape):
    stack, x = drawn(3, *shape), drawn(*shape[:-1])
    for i in range(3):
        product = jax.jit(lambda x, stack, i: one_token(x, InStack(stack, (i,))))(x, stack, i)
        close(product, jnp.tensordot(x, stack[i], axes=x.ndim))


@pytest.mark.parametrize("shape", [(3, 36, 5), (9, 7, 4), (1, 24, 1), (5, 1, 3)])
def test_the_product_of_a_token_with_every_head(shape):
    stack, x = drawn(2, *shape), drawn(shape[1])
    for i in range(2):
        product = jax.jit(lambda x, stack, i: one_token(x, InStack(stack, (i,))))(x, stack, i)
        close(product, jnp.einsum("d,ndh->nh", x, stack[i]))


def test_the_product_of_a_token_with_an_expert_of_a_layer():
    stack, x = drawn(2, 3, 36, 5), drawn(36)
    for layer, expert in ((0, 2), (1, 0)):
        weight = InStack(stack, (jnp.int32(layer),)).at(jnp.int32(expert))
        close(one_token(x, weight), x @ stack[layer, expert])
        np.testing.assert_array_equal(weight.array(), stack[layer, expert])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_summed_in_float32(dtype):
    stack, x = drawn(2, 96, 5).astype(dtype), drawn(96).astype(dtype)
    product = one_token(x, InStack(stack, (jnp.int32(1),)))
    exact = np.asarray(x, np.float32) @ np.asarray(stack[1], np.float32)
    assert product.dtype == dtype
    np.testing.assert_array_equal(product, exact.astype(product.dtype))


def test_a_layer_has_the_weights_of_its_row():
    of = model("moe")
    for products in (True, False):
        for i in range(len(of.cfg.stacks[1])):
            layer = layer_in_stack(of.modules.stacks[1], jnp.int32(i), products)
            layer = jax.tree.map(as_array, layer, is_leaf=_in_stack)
            expected = jax.tree.map(lambda w, i=i: w[i], of.modules.stacks[1])
            jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(layer), jax.tree.leaves(expected))


def _in_stack(value) -> bool:
    return isinstance(value, InStack)


def test_a_weight_that_is_divided_among_devices_is_not_read_in_place():
    of, axes = model("llama"), (jax.sharding.AxisType.Auto,)
    for size, stays in ((1, True), (2, False)):
        mesh = jax.sharding.AbstractMesh((size,), ("model",), axis_types=axes)
        weight = jax.ShapeDtypeStruct((4, 14, 22), jnp.float32, sharding=jax.sharding.NamedSharding(mesh, SPEC))
        stack = of.modules.stacks[0].mlp
        found = []

        def layer(W, found=found, stack=stack):
            changed = jax.tree.map(lambda w: w, stack)
            changed.W_in = W
            found.append(_in_stack(layer_in_stack(changed, jnp.int32(0), True).W_in))

        jax.eval_shape(layer, weight)
        assert found == [stays]
