"""What holds for every model holds for every family: hook points, identities, weight processing, half precision.

On a checkpoint of each that transformers wrote. What the parts do in all their forms is tested on configs of our own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from families import CASES
from test_models import close
from tiny import random_tokens, write_checkpoint

from jaxlens import HookedTransformer
from jaxlens.analysis.attribution import attribution_patch
from jaxlens.convert.families import family_of
from jaxlens.hook_table import sites
from jaxlens.hooks import Tap

every_family = pytest.mark.parametrize("model_type", CASES)
TOKENS, OTHERS = random_tokens(0, 9), random_tokens(1, 9)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A model of each family, made when it is first asked for."""

    @functools.cache
    def of(model_type: str) -> HookedTransformer:
        folder = tmp_path_factory.mktemp("family")
        write_checkpoint(folder, model_type, seed=2, **CASES[model_type][-1])
        return HookedTransformer.from_pretrained_no_processing(folder)

    return of


@every_family
def test_every_hook_point_fires_and_the_residual_stream_adds_up(loaded, model_type):
    model = loaded(model_type)
    _, cache = model.run_with_cache(TOKENS, names_filter=list(sites(model.cfg)))
    assert list(cache) == list(sites(model.cfg))
    for layer in range(model.cfg.n_layers):
        names = ("resid_pre", "attn_out", "mlp_out", "resid_post")
        pre, attn_out, mlp_out, post = (cache[name, layer] for name in names)
        if model.cfg.norm_placement == "sum":
            block = jax.tree.map(lambda w, layer=layer: w[layer], model.parts.stacks[0])
            close(block.ln1_sum(pre + attn_out, Tap(())), cache["resid_mid", layer])
            close(block.ln2_sum(cache["resid_mid", layer] + mlp_out, Tap(())), post)
        elif model.cfg.parallel_attn_mlp:
            assert jnp.array_equal(pre + attn_out + mlp_out, post)
        else:
            assert jnp.array_equal(pre + attn_out, cache["resid_mid", layer])
            assert jnp.array_equal(cache["resid_mid", layer] + mlp_out, post)
        assert layer == 0 or jnp.array_equal(cache["resid_post", layer - 1], pre)


@every_family
def test_weight_processing_keeps_the_log_probabilities_or_says_why_not(loaded, model_type):
    model = loaded(model_type)
    processed = model.processed()
    assert all(entry.applied or entry.reason for entry in processed.processing)
    before, after = (jax.nn.log_softmax(each(TOKENS)) for each in (model, processed))
    close(after, before)


@every_family
def test_components_add_up_and_their_attributions_to_the_logits(loaded, model_type):
    model = loaded(model_type)
    logits, cache = model.run_with_cache(TOKENS)
    stack = cache.get_full_resid_decomposition(expand_neurons=True)
    close(stack.sum(0), cache["resid_post", -1])
    if model.cfg.output_logits_soft_cap is None:
        close(cache.logit_attrs(stack, 3, 8).sum(0), (logits[..., 3] - logits[..., 8]) - constant(model, 3, 8), 1e-4)


def constant(model, right, wrong):
    """The part of a logit difference that no component has: the biases of the final norm and the unembedding."""
    b = getattr(model.parts.ln_final, "b", None)
    direction = model.W_U[:, right] - model.W_U[:, wrong]
    return model.b_U[right] - model.b_U[wrong] + (0 if b is None else b @ direction)


@pytest.mark.slow
@every_family
def test_an_attribution_is_the_derivative(loaded, model_type):
    """Of the residual stream before the first layer, by forward differentiation instead of backward."""
    model = loaded(model_type)

    def metric(logits):
        return jnp.mean(jax.nn.log_softmax(logits)[:, -1, 5])

    found = attribution_patch(model, OTHERS, TOKENS, metric, ["resid_pre", "z"])
    here, there = (model.run_with_cache(of, names_filter="blocks.0.hook_resid_pre")[1]["resid_pre", 0]
                   for of in (TOKENS, OTHERS))  # fmt: skip
    run = jax.jit(lambda model, x: metric(model(x, start_at_layer=0)))
    _, derivative = jax.jvp(functools.partial(run, model), (here,), (there - here,))
    close(found["resid_pre"].at(layer=0).values.sum(), derivative, 1e-4)


@every_family
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_is_near_that_of_transformers(tmp_path, model_type, dtype):
    """A checkpoint is loaded in the type it is stored in; what it predicts is what transformers predicts with it.

    Of most tokens: where two experts are nearly as good, rounding may choose either. Where that sends on most of them,
    ours are as near to those in float32 as transformers' are.
    """
    folder = write_checkpoint(tmp_path, model_type, seed=3, dtype=dtype, spread=0.15, **CASES[model_type][0])
    model = HookedTransformer.from_pretrained_no_processing(folder, dtype=None)
    assert model.cfg.dtype == dtype
    half, exact = (log_probs_of_transformers(folder, model_type, getattr(torch, of)) for of in (dtype, "float32"))
    ours = np.asarray(jax.nn.log_softmax(model(TOKENS).astype(jnp.float32)))
    assert divergence(half, ours) <= 1e-3 or divergence(exact, ours) <= 2 * divergence(exact, half)


def log_probs_of_transformers(folder, model_type, dtype):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=family_of(model_type).reference,
        experts_implementation="eager",  # the others want sizes that are multiples of eight
    ).eval()  # fmt: skip
    with torch.no_grad():
        return torch.log_softmax(theirs(torch.tensor(TOKENS)).logits.float(), -1).numpy()


def divergence(expected, found):
    """The Kullback-Leibler divergence of the median token."""
    return np.median((np.exp(expected) * (expected - found)).sum(-1))
