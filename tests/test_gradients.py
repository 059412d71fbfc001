"""Gradients with Python hooks outside of jit: those of the same function in jit. A new hook compiles nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import model, tokens
from test_engine import compilations  # noqa: F401, a fixture
from test_models import close

from jaxlens import hook

every_kind = pytest.mark.parametrize("name", ["llama", "gpt2", "moe", "shortformer"])


def fresh(by=1.5):
    return lambda value, hook: value * by


def plus(value, hook, direction, strength):
    return value + strength * direction


def same(function, *arguments):
    """The gradient outside of jit is that inside of jit, where the layers run in a scan."""
    expected = jax.jit(jax.grad(function))(*arguments)
    given = jax.grad(function)(*arguments)
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        close(a, b)
    assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(given))


@every_kind
def test_the_gradient_of_the_weights(name):
    the_model, given = model(name), tokens(2, 7)
    everywhere = hook(plus, direction=0.1, strength=0.5)
    hooks = [("blocks.1.hook_resid_post", fresh()), ("blocks.*.hook_attn_out", everywhere)]
    same(lambda p: the_model.with_params(p)(given, return_type="loss", hooks=hooks), the_model.params)


@pytest.mark.parametrize("name", ["llama", "moe"])
def test_the_gradient_of_what_hooks_use_and_of_a_residual_stream(name):
    the_model, given = model(name), tokens(2, 7)
    direction, residual = jnp.linspace(-1, 1, the_model.cfg.d_model), the_model(given, stop_at_layer=1)

    def steered(direction):
        hooks = [
            ("blocks.1.hook_resid_pre", lambda value, hook: value + direction),
            ("blocks.*.hook_resid_post", hook(plus, direction=direction, strength=0.5)),
        ]
        name = "blocks.*.attn.hook_z"
        loss, cache = the_model.run_with_cache(given, return_type="loss", hooks=hooks, names_filter=name)
        return loss + jnp.sin(cache[name]).sum()

    def continued(residual):
        return the_model.run_with_hooks(
            residual, start_at_layer=1, tokens=given, return_type="loss", fwd_hooks=[("blocks.2.attn.hook_q", fresh())]
        )

    same(steered, direction)
    same(continued, residual)


@pytest.mark.parametrize("name", ["llama", "gpt2", pytest.param("moe", marks=pytest.mark.slow), "shortformer"])
def test_gradients_in_a_cache_beside_a_python_hook(name):
    the_model, given = model(name), tokens(2, 7)
    hooks = [("blocks.0.hook_resid_pre", fresh(1.1)), ("blocks.1.hook_resid_post", fresh(1.2))]
    some = ["blocks.1.hook_attn_out", "blocks.*.hook_resid_pre", "blocks.1.hook_resid_post"]
    for options in ({}, {"names_filter": some}, {"pos_slice": -1}):

        def run(the_model, options=options):
            options = {"return_type": "loss", "incl_bwd": True, "hooks": hooks, **options}
            loss, cache = the_model.run_with_cache(given, **options)
            return loss, dict(cache.items())

        (loss, cache), (expected, by_name) = run(the_model), jax.jit(run)(the_model)
        close(loss, expected)
        assert cache.keys() == by_name.keys()
        for key, value in cache.items():
            close(value, by_name[key])


def test_backward_hooks_run_on_concrete_gradients():
    the_model, given, seen = model("llama"), tokens(2, 7), []

    def doubled(gradient, hook):
        seen.append(isinstance(gradient, jax.core.Tracer))
        return gradient * 2

    def loss(params):
        hooks = [("blocks.2.hook_resid_pre", doubled)]
        return the_model.with_params(params).run_with_hooks(given, return_type="loss", bwd_hooks=hooks)

    jax.grad(loss)(the_model.params)
    assert seen == [False]
    same(loss, the_model.params)


def test_a_new_hook_compiles_nothing(compilations):  # noqa: F811
    the_model, given = model("llama"), tokens(1, 7)

    def gradients(layer):
        hooks = [(f"blocks.{layer}.hook_resid_post", fresh(1 + layer / 9))]
        jax.grad(lambda p: the_model.with_params(p)(given, return_type="loss", hooks=hooks))(the_model.params)
        the_model.run_with_cache(given, return_type="loss", incl_bwd=True, hooks=hooks)

    gradients(1)
    gradients(2)
    compilations.clear()
    for layer in (1, 2, 1):
        gradients(layer)
    assert not compilations


@pytest.mark.parametrize("end", ["pre", "post"])
def test_hooks_between_two_layers_that_close_over_what_is_differentiated(end):
    the_model, given, ran = model("llama"), tokens(1, 5), []
    direction = jnp.linspace(-1, 1, the_model.cfg.d_model)

    def loss(direction):
        def steer(value, hook):
            ran.append(hook.name)
            return value + direction

        hooks = [(f"blocks.{layer}.hook_resid_{end}", steer) for layer in (0, 2)]
        loss, cache = the_model.run_with_cache(given, return_type="loss", hooks=hooks)
        return loss + jnp.sin(cache[f"blocks.2.hook_resid_{end}"]).sum()

    ran.clear()
    gradient = jax.grad(loss)(direction)
    assert ran == [f"blocks.{layer}.hook_resid_{end}" for layer in (0, 2)]
    close(gradient, jax.jit(jax.grad(loss))(direction))
    close(jax.vmap(jax.grad(loss))(direction[None])[0], gradient)
    close(jax.jvp(loss, (direction,), (direction,))[1], gradient @ direction)


@pytest.mark.parametrize("attn_block", [256, 4])
@pytest.mark.parametrize("hooks", [[], [("blocks.*.attn.hook_attn_scores", lambda scores, hook: scores)]])
def test_derivatives_with_padding_before_the_tokens(hooks, attn_block):
    """Padding attends to nothing, so its softmax divides zero by zero if it is written carelessly."""
    the_model, given = model("llama"), tokens(2, 9)
    the_model = type(the_model)(the_model.cfg.replace(attn_block=attn_block), params=the_model.params)
    residual, mask = the_model(given, stop_at_layer=1), jnp.ones((2, 9), bool).at[0, :3].set(False)

    def loss(residual):
        hooked = {"start_at_layer": 1, "tokens": given, "attention_mask": mask, "return_type": "loss"}
        return the_model.run_with_hooks(residual, fwd_hooks=hooks, **hooked)

    gradient = jax.grad(loss)(residual)
    assert np.isfinite(gradient).all()
    close(jax.jvp(loss, (residual,), (residual,))[1], (gradient * residual).sum())


def test_derivatives_of_other_kinds():
    the_model, given = model("llama"), tokens(1, 5)
    direction = jnp.linspace(-1, 1, the_model.cfg.d_model)

    def loss(direction):
        hooks = [("blocks.1.hook_resid_pre", lambda value, hook: value + direction)]
        return the_model.run_with_hooks(given, return_type="loss", fwd_hooks=hooks)

    gradient = jax.grad(loss)(direction)
    close(jax.jvp(loss, (direction,), (direction,))[1], gradient @ direction)
    close(jax.vmap(jax.grad(loss))(direction[None])[0], gradient)
    close(jax.grad(lambda d: jax.grad(loss)(d) @ direction)(direction), jax.hessian(loss)(direction) @ direction)
    close(jax.grad(jax.checkpoint(loss))(direction), gradient)


def test_gradients_of_gradients():
    the_model, given = model("gpt2"), tokens(1, 5)
    hooks = [("blocks.1.hook_mlp_out", fresh())]

    def by_input(params):
        residual = jnp.ones((1, 5, the_model.cfg.d_model)) * jnp.arange(the_model.cfg.d_model)
        run = the_model.with_params(params).run_with_hooks
        return (jax.grad(lambda x: (run(x, start_at_layer=0, fwd_hooks=hooks) ** 2).mean())(residual) ** 2).sum()

    def of_cached_gradients(params):
        options = {"return_type": "loss", "incl_bwd": True, "hooks": hooks, "names_filter": "blocks.*.hook_mlp_out"}
        cache = the_model.with_params(params).run_with_cache(given, **options)[1]
        return (cache["blocks.1.hook_mlp_out_grad"] ** 2).sum()

    for function in (by_input, of_cached_gradients):
        expected = jax.jit(jax.grad(function))(the_model.params)
        for name, gradient in jax.grad(function)(the_model.params).items():
            close(gradient, expected[name])


def test_numpy_weights_compile_nothing_for_a_new_hook(compilations):  # noqa: F811
    the_model, given = model("llama"), tokens(1, 7)
    params = {name: np.asarray(w) for name, w in the_model.params.items()}

    def gradient(by):
        hooks = [("blocks.1.hook_resid_post", fresh(by))]
        return jax.grad(lambda p: the_model.with_params(p)(given, return_type="loss", hooks=hooks))(params)

    gradient(1.5)
    compilations.clear()
    gradient(1.6)
    assert not compilations
