"""The Jacobian of the residual stream and gradients integrated along a way, against what they are by definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import CONFIGS, model, randomised, tokens
from test_attribution import CLEAN, CORRUPT, in_x64, score
from test_engine import compilations  # noqa: F401  (a fixture)
from test_models import close, every_config

from jaxlens.analysis.attribution.integrated_gradients import integrated_gradients
from jaxlens.analysis.attribution.jacobian import residual_jacobian

SMOOTH = [
    name for name, cfg in CONFIGS.items() if not cfg.num_experts and cfg.clip_qkv is None and cfg.act_fn != "relu2"
]
"""Where experts come and go, logits jump, and no integral of a derivative sees that."""


# --- the Jacobian


@every_config
def test_the_jacobian_of_a_vector_is_its_finite_difference(name):
    with jax.enable_x64(True):
        the_model, rng = in_x64(name), np.random.default_rng(0)
        J = residual_jacobian(the_model, CLEAN, 1, 3)
        residual = the_model(CLEAN, stop_at_layer=1)
        change, gradient = jnp.asarray(rng.normal(size=(2, *residual.shape)))
        moved = [the_model(residual + step * change, start_at_layer=1, stop_at_layer=3) for step in (1e-6, -1e-6)]
        arrives = J.matvec(change)
        close(arrives, (moved[0] - moved[1]) / 2e-6, 1e-6)
        assert J.shape == (residual.shape, residual.shape)
        close(jnp.sum(gradient * arrives), jnp.sum(J.rmatvec(gradient) * change), 1e-12)


@pytest.mark.parametrize("name", ["gpt2", "gemma"])
def test_the_matrix_is_jaxs_jacobian_and_prompts_do_not_mix(name):
    the_model, prompts = model(name), tokens(2, 5)
    residual = the_model(prompts, stop_at_layer=1)
    whole = jax.jit(jax.jacobian(lambda x, the_model: the_model(x, start_at_layer=1, stop_at_layer=-1)))
    expected = whole(residual, the_model)
    dense = residual_jacobian(the_model, prompts, 1, -1).dense()
    for prompt in range(2):
        close(dense[prompt], expected[prompt, :, :, prompt])
    assert not np.any(expected[0, :, :, 1])
    part = residual_jacobian(the_model, prompts, 1, -1, from_pos=[0, 2], to_pos=-1)
    assert part.shape == ((2, 14), (2, 2, 14))
    close(part.dense(), dense[:, -1][:, :, [0, 2]])
    change = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 14)), jnp.float32)
    close(part.matvec(change), jnp.einsum("bcpd,bpd->bc", part.dense(), change))
    close(part.rmatvec(change[:, 0]), jnp.einsum("bcpd,bc->bpd", part.dense(), change[:, 0]))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_directions_that_grow_most_are_those_of_the_svd(seed):
    the_model, prompts = randomised(CONFIGS["llama"], seed), tokens(3, 4, seed)
    J = residual_jacobian(the_model, prompts, 0, from_pos=slice(1, 4), to_pos=-1)
    left, growth, right = J.svd(4, n_iterations=30)
    u, s, vh = np.linalg.svd(np.asarray(J.dense()).reshape(3, 14, 42), full_matrices=False)
    assert left.shape == (3, 4, 14) and right.shape == (3, 4, 3, 14)
    close(growth, s[:, :4], 1e-4)
    close(jnp.abs(jnp.einsum("brc,bcr->br", left, u[..., :4])), np.ones((3, 4)), 1e-3)
    close(jnp.abs(jnp.einsum("brpd,brpd->br", right, vh[:, :4].reshape(3, 4, 3, 14))), np.ones((3, 4)), 1e-3)
    for rank in range(4):
        close(J.matvec(right[:, rank]), growth[:, rank, None] * left[:, rank], 1e-4)


def test_the_jacobian_sees_padding_and_new_prompts_compile_nothing(compilations):  # noqa: F811
    the_model, change = model("qwen3"), jnp.ones((2, 11, 14))
    alone = residual_jacobian(the_model, CLEAN, 0, 2).matvec(change)
    pad = ((0, 0), (3, 0))
    padded = residual_jacobian(
        the_model, jnp.pad(CLEAN, pad), 0, 2, from_pos=slice(3, None), to_pos=slice(3, None),
        attention_mask=jnp.pad(jnp.ones_like(CLEAN), pad),
    )  # fmt: skip
    close(padded.matvec(change), alone)
    close(residual_jacobian(the_model, CLEAN, 2, 2).matvec(change), change)
    compilations.clear()
    residual_jacobian(the_model, CORRUPT, 0, 2).matvec(change)
    assert compilations == []

    def svd(n):
        return residual_jacobian(the_model, np.asarray(CLEAN)[:, :n], 0, 2, from_pos=3, to_pos=-1).svd(2)

    svd(11)
    compilations.clear()
    svd(10)
    svd(9)
    assert compilations == []


def test_the_jacobian_of_a_model_in_half_precision():
    the_model = model("llama")
    half = type(the_model)(
        the_model.cfg.replace(dtype="bfloat16"),
        params={name: value.astype("bfloat16") for name, value in the_model.params.items()},
    )
    wide, narrow = (residual_jacobian(of, CLEAN, 0, 2, from_pos=3, to_pos=-1) for of in (the_model, half))
    for expected, found in (
        (wide.matvec(np.ones((2, 14))), narrow.matvec(np.ones((2, 14)))), (wide.svd(2)[1], narrow.svd(2)[1]),
        (wide.dense(), narrow.dense()),
    ):  # fmt: skip
        assert np.abs(found.astype("float32") - expected).max() < 0.05 * np.abs(expected).max()


# --- integrated gradients


@pytest.mark.parametrize("name", SMOOTH)
def test_contributions_add_up_to_the_difference_of_the_metric(name):
    """Completeness: for a baseline near enough to be smooth on the way, exactly; and for every prompt by itself."""
    with jax.enable_x64(True):
        the_model = in_x64(name)
        embedded = the_model.run_with_cache(CLEAN, names_filter="hook_embed", stop_at_layer=0)[1]["hook_embed"]
        baseline = np.asarray(embedded) * (1 + 0.03 * np.random.default_rng(0).normal(size=embedded.shape))
        found = integrated_gradients(the_model, CLEAN, score, baseline, 16)
        assert np.abs(found.gap).max() <= 1e-8 * np.abs(found.difference).max()
        start = the_model.run_with_hooks(CLEAN, fwd_hooks=[("hook_embed", lambda value, hook: baseline)])
        close(found.difference, score(the_model(CLEAN)) - score(start), 1e-12)
        close(found.values.sum(-1) + found.gap, found.difference, 1e-12)


def test_between_prompts_more_steps_leave_less_of_a_gap():
    the_model = model("gpt2")
    gaps = [np.abs(integrated_gradients(the_model, CLEAN, score, CORRUPT, steps).gap).max() for steps in (2, 8, 32)]
    assert gaps[0] > 10 * gaps[1] and gaps[1] > 5 * gaps[2] and gaps[2] < 1e-4
    one = integrated_gradients(the_model, CLEAN, lambda logits: score(logits).mean(), CORRUPT, 32)
    each = integrated_gradients(the_model, CLEAN, score, CORRUPT, 32)
    close(one.values, each.values / 2)
    assert one.gap.shape == () and each.gap.shape == (2,) and one.axes == ("prompt", "pos")


def test_tokens_that_are_the_same_or_not_read_contribute_nothing():
    the_model, same = model("llama"), CLEAN.at[:, 5].set(CORRUPT[:, 5])
    found = integrated_gradients(the_model, same, lambda logits: logits[:, 7, 3], CORRUPT, 4).values
    assert not found[:, 5].any() and not found[:, 8:].any() and found[:, [0, 4, 7]].all()
