"""The mask never exists: no compiled program has an array of booleans or integers with two context-sized axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.hlo import mask_buffers
from support.models import LLAMA

from jaxlens import Config, HookedTransformer
from jaxlens.hooks.tap import Tap
from jaxlens.model.loops import LoopInputs, Program, compiled_loop, new_buffers
from jaxlens.nn.module import arrays
from jaxlens.nn.scores import masked_softmax, softmax, visible
from jaxlens.nn.sequence import PADDING, band, sequence_info

LENGTH = 2048
WINDOWS = {
    "global": {}, "local": {"windows": 64}, "alternating": {"windows": (None, 64, None, 64)},
    "distances and sinks": {"positional_embedding_type": "alibi", "attn_sinks": True},
}  # fmt: skip
EXPLICIT, BLOCKWISE = 1 << 20, 512


def long_model(windows, attn_block: int) -> HookedTransformer:
    small = {**LLAMA, "d_model": 8, "n_heads": 2, "n_key_value_heads": 1, "d_mlp": 8, "n_ctx": 4096}
    return HookedTransformer(Config(**{**small, **WINDOWS[windows]}, attn_block=attn_block))


def padded():
    tokens = jnp.zeros((2, LENGTH), jnp.int32)
    return tokens, jnp.ones_like(tokens).at[0, :5].set(0)


def forward(model, tokens, mask):
    return model(tokens, attention_mask=mask)


def gradient(model, tokens, mask):
    def loss(params):
        return model.with_params(params)(tokens, attention_mask=mask, return_type="loss")

    return jax.grad(loss)(model.params)


every_window = pytest.mark.parametrize("windows", WINDOWS)
every_path = pytest.mark.parametrize("attn_block", [EXPLICIT, BLOCKWISE])


@every_window
@every_path
@pytest.mark.parametrize("run", [forward, gradient])
def test_no_mask_under_a_transformation(windows, attn_block, run):
    compiled = jax.jit(run).lower(long_model(windows, attn_block), *padded()).compile()
    assert not mask_buffers(compiled.as_text(), LENGTH)


@every_window
def test_no_mask_where_the_weights_are_constants(windows):
    """Even then: closed over, every layer's window is a constant, and XLA may hoist what depends on nothing else."""
    model = long_model(windows, EXPLICIT)
    compiled = jax.jit(lambda tokens, mask: model(tokens, attention_mask=mask)).lower(*padded()).compile()
    assert not mask_buffers(compiled.as_text(), LENGTH)


@every_window
@every_path
def test_no_mask_in_the_loop_with_data_as_bounds(windows, attn_block):
    model, (tokens, mask) = long_model(windows, attn_block), padded()

    def loop(stack, x, mask, first, last, wanted):
        program = Program(model.cfg.stacks[0], wanted, 4 if wanted else 0)
        inputs = LoopInputs(stack, (sequence_info(model.cfg, mask), (), None), {})
        return compiled_loop(program, inputs, x, new_buffers(program, inputs, x), first, last)

    for wanted in (frozenset(), frozenset({"hook_resid_post"})):
        args = (
            model.modules.stacks[0],
            arrays(model.modules.embed)(tokens, Tap(())),
            mask.astype(bool),
            np.int32(0),
            np.int32(4),
        )
        compiled = jax.jit(loop, static_argnums=5).lower(*args, wanted).compile()
        assert not mask_buffers(compiled.as_text(), LENGTH)


@every_window
@every_path
def test_no_mask_in_a_single_layer(windows, attn_block):
    model, (tokens, mask) = long_model(windows, attn_block), padded()

    def layer(block, x, mask):
        return block(x, sequence_info(model.cfg, mask).at_layer(jnp.int32(1)), Tap((), layer=1))

    args = model.blocks[1].module, arrays(model.modules.embed)(tokens, Tap(())), mask.astype(bool)
    for run in (layer, jax.grad(lambda *args: layer(*args).sum(), argnums=1)):
        assert not mask_buffers(jax.jit(run).lower(*args).compile().as_text(), LENGTH)


def test_the_reader_of_hlo_finds_a_mask_when_there_is_one():
    """The naive form in a loop over layers, which XLA hoists: the test above would see it."""

    def naive(scores, windows):
        i = jax.lax.broadcasted_iota(jnp.int32, (LENGTH, LENGTH), 0)
        j = jax.lax.broadcasted_iota(jnp.int32, (LENGTH, LENGTH), 1)

        def layer(scores, window):
            return jax.nn.softmax(jnp.where((j <= i) & (i - j < window), scores @ scores, -jnp.inf)), None

        return jax.lax.scan(layer, scores, windows)[0]

    args = jnp.zeros((LENGTH, LENGTH)), jnp.full(4, 64)
    assert mask_buffers(jax.jit(naive).lower(*args).compile().as_text(), LENGTH)


def test_the_band_is_causal_and_counts_the_query_itself():
    low, high = band(jnp.arange(5)[None], jnp.int32(2), jnp.int32(3))
    seen = visible(low, high, high, 4)[0, 0]
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
    assert seen.astype(int).tolist() == expected


def test_masked_softmax_and_its_derivatives_are_those_of_the_plain_one():
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(size=(2, 3, 6, 6)), jnp.float32)
    low, high = band(jnp.array([[-1, -1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]), jnp.int32(4), jnp.int32(0))
    sources = jnp.where(high < 0, PADDING, high)
    weights = jnp.asarray(rng.normal(size=scores.shape), jnp.float32)

    def fused(scores):
        return jnp.sum(weights * masked_softmax(scores, low, high, sources) ** 2)

    def plain(scores):
        masked = jnp.where(visible(low, high, sources, 4), scores, -jnp.inf)
        return jnp.sum(weights * softmax(masked) ** 2)

    assert np.allclose(fused(scores), plain(scores), atol=1e-6)
    assert np.allclose(jax.grad(fused)(scores), jax.grad(plain)(scores), atol=1e-6)
    tangent = jnp.asarray(rng.normal(size=scores.shape), jnp.float32)
    second = [jax.jvp(jax.grad(f), (scores,), (tangent,))[1] for f in (fused, plain)]
    assert np.allclose(*second, atol=1e-6)


@pytest.mark.parametrize("kind", ["jvp", "vjp"])
def test_derivatives_mapped_over_changes_are_those_of_each(kind):
    """With as many numbers as some compilers cut into blocks: see `masks._masked_softmax_jvp`."""
    rng, (low, high) = np.random.default_rng(0), band(jnp.tile(jnp.arange(11), (2, 1)), jnp.int32(5), jnp.int32(0))
    scores, changes = (jnp.asarray(rng.normal(size=(*n, 2, 6, 11, 11)), jnp.float32) for n in ((), (30,)))

    def pattern(scores):
        return masked_softmax(scores, low, high, high)

    def derivative(change):
        if kind == "vjp":
            return jax.vjp(pattern, scores)[1](change)[0]
        return jax.jvp(pattern, (scores,), (change,))[1]

    expected = jnp.stack([derivative(change) for change in changes])
    assert np.allclose(jax.jit(jax.vmap(derivative))(changes), expected, atol=1e-5)
    weigh = jnp.asarray(rng.normal(size=(2, 6, 11, 4)), jnp.float32)
    weighed = jax.jit(jax.vmap(lambda change: derivative(change) @ weigh))(changes)
    assert np.allclose(weighed, expected @ weigh, atol=1e-5)


def test_a_query_that_sees_nothing_attends_to_nothing():
    scores = jnp.zeros((1, 1, 3, 3))
    low, high = band(jnp.array([[-1, 0, 1]]), jnp.int32(3), jnp.int32(0))
    sources = jnp.array([[PADDING, 0, 1]])
    assert masked_softmax(scores, low, high, sources)[0, 0].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0.5, 0.5]]
    assert softmax(jnp.full((2, 2), -jnp.inf)).tolist() == [[0, 0], [0, 0]]
