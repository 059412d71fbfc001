"""Chosen experts alone, or all experts on every token: the same output, gradients and hook points."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.hlo import buffers
from support.models import CONFIGS, SIZES, randomised

from jaxlens import Config, HookedTransformer, hook
from jaxlens.hooks.table import sites
from jaxlens.model.loops import LoopInputs, Program, compiled_loop
from jaxlens.nn.experts import run_chosen
from jaxlens.nn.in_stack import InStack
from jaxlens.nn.moe import sparsemixer

MANY = {
    **SIZES, "normalization_type": "RMS", "gated_mlp": True, "act_fn": "silu", "positional_embedding_type": "rotary",
    "biases": (), "num_experts": 9, "experts_per_token": 3, "d_expert": 10, "n_layers": 2,
}  # fmt: skip
ROUTERS = {
    "moe": CONFIGS["moe"],
    "deepseek": CONFIGS["deepseek"],
    "oss": CONFIGS["oss"],
    "many": Config(**MANY),
    "sparsemixer": Config(**{**MANY, "experts_per_token": 2}, router="sparsemixer", router_tolerance=0.01),
    "shared": Config(**MANY, d_shared_expert=7, shared_expert_gate=True, norm_topk_prob=True),
}
NEURONS = "blocks.*.mlp.hook_post"


@functools.cache
def mixture(name: str) -> HookedTransformer:
    return randomised(ROUTERS[name])


def given(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, SIZES["d_vocab"], shape)


def run(model, tokens, names: str):
    return model.run_with_cache(tokens, names_filter=names)[0]


def close(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()) + 1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (3, 9)])
@pytest.mark.parametrize("name", ROUTERS)
def test_chosen_experts_write_what_all_experts_write(name, shape):
    model, tokens = mixture(name), given(shape)
    close(run(model, tokens, "hook_embed"), run(model, tokens, NEURONS))
    close(model(tokens), jax.jit(lambda model: run(model, tokens, NEURONS))(model))


@pytest.mark.parametrize("n_tokens", [1, 2, 5, 8, 31, 90, 700])
@pytest.mark.parametrize("n_experts", [4, 23])
@pytest.mark.parametrize("in_stack", [False, True])
def test_experts_with_few_and_many_tokens(n_tokens, n_experts, in_stack):
    """Some have no token, some one, and one has most of them."""
    rng = np.random.default_rng(n_tokens + n_experts)
    likely = np.arange(1, n_experts + 1) ** -2.0
    indices = np.stack([rng.choice(n_experts, 3, replace=False, p=likely / likely.sum()) for _ in range(n_tokens)])
    shapes = {"W_gate": (5, 6), "W_in": (5, 6), "W_out": (6, 5), "b_gate": (6,), "b_in": (6,), "b_out": (5,)}
    W = {name: rng.standard_normal((2, n_experts, *shape), np.float32) for name, shape in shapes.items()}
    x, values = rng.standard_normal((n_tokens, 5), np.float32), rng.random((n_tokens, 3), np.float32)
    given = {name: InStack(jnp.asarray(w), (jnp.int32(1),)) if in_stack else w[1] for name, w in W.items()}
    found = run_chosen(jnp.asarray(x), jnp.asarray(indices), jnp.asarray(values), given, act_fn="silu")
    gate, pre = (np.einsum("td,tcdf->tcf", x, W[f"W_{name}"][1][indices]) + W[f"b_{name}"][1][indices]
                 for name in ("gate", "in"))  # fmt: skip
    post = gate / (1 + np.exp(-gate)) * pre
    out = np.einsum("tcf,tcfd->tcd", post, W["W_out"][1][indices]) + W["b_out"][1][indices]
    np.testing.assert_allclose(found, (out * values[..., None]).sum(axis=1), rtol=1e-4, atol=1e-4)


def test_logits_of_zero_choose_experts():
    weights = np.asarray(sparsemixer(jnp.zeros((1, 1, 5)), 0.01))[0, 0]
    np.testing.assert_allclose(weights, [0.2, 0.25, 0, 0, 0], rtol=1e-6)  # of five, then of four


@pytest.mark.parametrize("name", ["deepseek", "oss", "sparsemixer"])
def test_gradients_agree(name):
    tokens = given((2, 7))

    def gradient(names):
        return jax.jit(jax.grad(lambda model: jnp.sum(run(model, tokens, names) ** 2)))(mixture(name))

    close(gradient("hook_embed").params, gradient(NEURONS).params)


def test_derivatives_forward_and_mapped_agree():
    model, tokens = mixture("many"), given((1, 6))
    residual = model.run_with_cache(tokens, names_filter="blocks.0.hook_resid_pre")[1]["blocks.0.hook_resid_pre"]

    def after(names, x):
        return model.run_with_cache(x, names_filter=names, start_at_layer=0)[0]

    for derivative in (
        lambda f: jax.jvp(f, (residual,), (jnp.ones_like(residual),))[1],
        lambda f: jax.vmap(f)(jnp.stack([residual, 2 * residual])),
        lambda f: jax.vmap(jax.grad(lambda x: f(x).sum()))(jnp.stack([residual, 2 * residual])),
    ):
        results = [derivative(functools.partial(after, names)) for names in ("blocks.1.hook_resid_post", NEURONS)]
        close(*results)


def test_all_tokens_may_choose_the_same_expert():
    """Also with more tokens than the blocks of an expert hold on average."""
    model, tokens = mixture("many"), given((3, 9))
    bias = hook(lambda weights, hook, to: weights + to, to=jnp.zeros(9).at[4].set(5))
    with model.hooks(fwd_hooks=[("blocks.*.mlp.hook_expert_weights", bias)]):
        close(run(model, tokens, "hook_embed"), run(model, tokens, NEURONS))
        gradients = [jax.grad(lambda m, n=n: jnp.sum(run(m, tokens, n) ** 2))(model) for n in ("hook_embed", NEURONS)]
    close(*(gradient.params for gradient in gradients))


def test_a_python_hook_on_neurons_runs_all_experts_of_its_layer():
    model, tokens, seen = mixture("many"), given((2, 6)), []
    model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.mlp.hook_post", lambda post, hook: seen.append(post.shape))])
    assert seen == [(2, 6, 9, 10)]
    for edited in (lambda post, hook: post * 0, hook(lambda post, hook: post * 0)):
        with model.hooks(fwd_hooks=[("blocks.1.mlp.hook_post", edited)]):
            _, cache = model.run_with_cache(tokens, names_filter="blocks.1.hook_mlp_out")
        assert not cache["blocks.1.hook_mlp_out"].any()


def test_an_unfiltered_cache_holds_no_neurons_of_experts():
    model = mixture("many")
    _, cache = model.run_with_cache(given((1, 6)))
    assert not any("mlp.hook_p" in name for name in cache)
    assert list(cache) == [name for name, site in sites(model.cfg).items() if not site.on_request]


def test_no_layer_of_experts_is_copied():
    """The compiled loop reads the experts of its stack where they are."""
    model = mixture("many")
    shared = model.modules.sequence_info(np.ones((1, 4), bool)), (), None
    inputs, x = LoopInputs(model.modules.stacks[0], shared, {}), jnp.zeros((1, 4, SIZES["d_model"]))
    leaves, structure = jax.tree.flatten(inputs)  # lowering puts objects that are no arrays in their place

    def loop(leaves, x, first, last):
        return compiled_loop(Program((0, 1), frozenset(), 0), structure.unflatten(leaves), x, {}, first, last)

    compiled = jax.jit(loop).lower(leaves, x, np.int32(0), np.int32(2)).compile().as_text()
    sizes = {math.prod(shape) for _, shape, line in buffers(compiled) if "parameter" not in line}
    assert SIZES["d_model"] * 10 in sizes  # an expert
    assert 9 * SIZES["d_model"] * 10 not in sizes
