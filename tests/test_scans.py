"""Layers under a transformation of the user: weights that are read where they lie, and their derivatives."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.hlo import buffers
from support.models import SIZES, model, tokens
from test_models import close

from jaxlens import hook

CASES = [("llama", 1), ("gpt2", 1), ("deepseek", 1), ("moe", 1), ("moe", 5)]


def add(value, hook, direction):
    return value + direction


def loss(kind: str, text):
    """A loss by the model and a direction, which a hook has as data, in its closure, or as a default value."""

    def run(of, direction):
        edit = {
            "data": hook(add, direction=direction),
            "closure": hook(lambda value, hook, zero: value + direction + zero, zero=0.0),
            "default": hook(lambda value, hook, own=direction: value + own),
            "python": lambda value, hook: value + direction,
        }[kind]
        return jnp.sum(of.run_with_hooks(text, fwd_hooks=[("blocks.1.hook_resid_pre", edit)]) ** 2)

    return run


@pytest.mark.parametrize(("name", "length"), CASES)
def test_runs_inside_jit_equal_those_outside(name, length):
    of, text = model(name), tokens(1, length)
    close(jax.jit(lambda of, text: of(text))(of, text), of(text))
    _, expected = of.run_with_cache(text)
    found = jax.jit(lambda of, text: of.run_with_cache(text)[1])(of, text)
    assert list(found) == list(expected)
    jax.tree.map(close, dict(found), dict(expected))


@pytest.mark.parametrize(("name", "length"), CASES)
def test_derivatives_are_those_of_every_order_of_transformations(name, length):
    of, text = model(name), tokens(1, length)
    direction = jnp.linspace(-1, 1, SIZES["d_model"])
    expected = jax.grad(loss("python", text), argnums=1)(of, direction)
    for kind in ("data", "closure", "default"):
        inside = jax.jit(jax.grad(loss(kind, text), argnums=1))
        outside = jax.grad(jax.jit(loss(kind, text)), argnums=1)
        for gradient in (inside, outside):
            close(gradient(of, direction), expected)
    data = functools.partial(loss("data", text), of)
    close(jax.grad(data)(direction), expected)
    close(jax.jvp(jax.jit(data), (direction,), (direction,))[1], expected @ direction)
    both = jnp.stack([direction, 2 * direction])
    close(jax.vmap(jax.jit(data))(both), jnp.stack([data(direction), data(2 * direction)]))
    close(jax.vmap(jax.grad(data))(both)[0], expected)


@pytest.mark.parametrize("name", ["llama", "moe"])
def test_gradients_of_weights_of_a_single_token(name):
    of, text = model(name), tokens(1, 1)
    inside = jax.grad(lambda of: jax.jit(lambda of: jnp.sum(of(text) ** 2))(of))(of).params
    outside = jax.jit(jax.grad(lambda of: jnp.sum(of(text) ** 2)))(of).params
    jax.tree.map(close, inside, outside)
    w = next(name for name in of.params if name.endswith("attn.W_V"))
    given, change = {w: of.params[w]}, {w: jnp.ones_like(of.params[w])}
    of_weights = jax.jvp(lambda given: jnp.sum(of.with_params(of.params | given)(text) ** 2), (given,), (change,))[1]
    np.testing.assert_allclose(of_weights, jnp.sum(outside[w]), rtol=1e-4)


def test_only_the_chosen_experts_are_copied_inside_jit():
    of = model("moe")
    compiled = jax.jit(lambda of, text: of(text)).lower(of, np.asarray(tokens(1, 4))).compile().as_text()
    sizes = {math.prod(shape) for _, shape, line in buffers(compiled) if "parameter" not in line}
    expert = of.cfg.d_model * of.cfg.d_expert
    assert expert in sizes and of.cfg.num_experts * expert not in sizes


def test_a_map_over_single_tokens_multiplies_a_matrix():
    """The sum of rows would read a weight once for each token. A product with a matrix needs a copy of it."""
    of, text = model("llama"), tokens(5, 1)
    weight = of.cfg.d_model * of.cfg.d_mlp

    def sizes(run, *inputs):
        compiled = run.lower(of, *inputs).compile().as_text()
        return {math.prod(shape) for _, shape, line in buffers(compiled) if "parameter" not in line}

    mapped = jax.jit(jax.vmap(lambda of, row: of(row[None])[0], (None, 0)))
    close(mapped(of, text), of(text))
    assert weight in sizes(mapped, text)
    assert weight not in sizes(jax.jit(lambda of, text: of(text)), text[:1])
