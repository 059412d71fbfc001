"""Laws that hold for every family: hook points, identities, weight processing, half precision.

Each test runs on a checkpoint that transformers wrote. The modules are tested with all their options elsewhere.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from families import CASES
from support.models import with_neurons
from support.tiny import random_tokens, write_checkpoint
from test_models import close

from jaxlens import HookedTransformer
from jaxlens.analysis.attribution.nodes import attribution_patch
from jaxlens.checkpoints.families import family_of
from jaxlens.hooks.table import sites
from jaxlens.hooks.tap import Tap
from jaxlens.nn.module import arrays

# `make test` runs these laws on families whose blocks differ; the others are made of the same parts.
DIFFERENT = {
    "apertus", "bloom", "cohere2", "deepseek_v3", "falcon", "gemma2", "gpt2", "gpt_neo", "gpt_neox", "gpt_oss", "gptj",
    "granite", "llama", "mixtral", "mpt", "olmo2", "openai-gpt", "opt", "phi3", "qwen3", "stablelm",
}  # fmt: skip
every_family = pytest.mark.parametrize(
    "model_type",
    [pytest.param(name, marks=() if name in DIFFERENT else pytest.mark.slow) for name in CASES],
)
TOKENS, CORRUPTED = random_tokens(0, 9), random_tokens(1, 9)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A function from a model_type to a model, which is made on the first call."""

    @functools.cache
    def get(model_type: str) -> HookedTransformer:
        folder = tmp_path_factory.mktemp("family")
        write_checkpoint(folder, model_type, seed=2, **CASES[model_type][-1])
        return HookedTransformer.from_pretrained_no_processing(folder)

    return get


@every_family
def test_every_hook_point_fires_and_the_residual_stream_adds_up(loaded, model_type):
    model = loaded(model_type)
    _, cache = model.run_with_cache(TOKENS, names_filter=list(sites(model.cfg)))
    assert list(cache) == list(sites(model.cfg))
    for layer in range(model.cfg.n_layers):
        names = ("resid_pre", "attn_out", "mlp_out", "resid_post")
        pre, attn_out, mlp_out, post = (cache[name, layer] for name in names)
        if model.cfg.norm_placement == "sum":
            block = arrays(jax.tree.map(lambda w, layer=layer: w[layer], model.modules.stacks[0]))
            close(block.ln1_sum(pre + attn_out, Tap(())), cache["resid_mid", layer])
            close(block.ln2_sum(cache["resid_mid", layer] + mlp_out, Tap(())), post)
        elif model.cfg.parallel_attn_mlp:
            assert jnp.array_equal(pre + attn_out + mlp_out, post)
        else:
            assert jnp.array_equal(pre + attn_out, cache["resid_mid", layer])
            assert jnp.array_equal(cache["resid_mid", layer] + mlp_out, post)
        assert layer == 0 or jnp.array_equal(cache["resid_post", layer - 1], pre)


@every_family
def test_weight_processing_keeps_the_log_probabilities(loaded, model_type):
    model = loaded(model_type)
    processed = model.processed()
    assert all(entry.applied or entry.reason for entry in processed.processing)
    before, after = (jax.nn.log_softmax(variant(TOKENS)) for variant in (model, processed))
    close(after, before)


@every_family
def test_components_add_up_and_their_attributions_to_the_logits(loaded, model_type):
    model = loaded(model_type)
    logits, cache = model.run_with_cache(TOKENS, names_filter=with_neurons(model.cfg))
    stack = cache.get_full_resid_decomposition(expand_neurons=True)
    close(stack.sum(0), cache["resid_post", -1])
    if model.cfg.output_logits_soft_cap is None:
        close(cache.logit_attrs(stack, 3, 8).sum(0), (logits[..., 3] - logits[..., 8]) - constant(model, 3, 8), 1e-4)


def constant(model, right, wrong):
    """The contribution of the biases of the final norm and the unembedding to a logit difference."""
    b = getattr(arrays(model.modules.ln_final), "b", None)
    direction = model.W_U[:, right] - model.W_U[:, wrong]
    return model.b_U[right] - model.b_U[wrong] + (0 if b is None else b @ direction)


@pytest.mark.slow
@every_family
def test_an_attribution_is_the_derivative(loaded, model_type):
    """Compares an attribution to the input of layer 0 with a derivative by forward-mode differentiation."""
    model = loaded(model_type)

    def metric(logits):
        return jnp.mean(jax.nn.log_softmax(logits)[:, -1, 5])

    attribution = attribution_patch(model, CORRUPTED, TOKENS, metric, ["resid_pre", "z"])
    clean, corrupted = (model.run_with_cache(tokens, names_filter="blocks.0.hook_resid_pre")[1]["resid_pre", 0]
                        for tokens in (TOKENS, CORRUPTED))  # fmt: skip
    run = jax.jit(lambda model, x: metric(model(x, start_at_layer=0)))
    _, derivative = jax.jvp(functools.partial(run, model), (clean,), (corrupted - clean,))
    close(attribution["resid_pre"].at(layer=0).values.sum(), derivative, 1e-4)


@every_family
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_is_close_to_transformers(tmp_path, model_type, dtype):
    """A checkpoint is loaded in the dtype it is stored in, and its predictions are close to those of transformers.

    The median over tokens is compared, because rounding can change which of two similar experts is chosen. If most
    tokens are affected, the predictions must be at most twice as far from float32 as those of transformers.
    """
    folder = write_checkpoint(tmp_path, model_type, seed=3, dtype=dtype, spread=0.15, **CASES[model_type][0])
    model = HookedTransformer.from_pretrained_no_processing(folder, dtype=None)
    assert model.cfg.dtype == dtype
    half, exact = (log_probs_of_transformers(folder, model_type, getattr(torch, name)) for name in (dtype, "float32"))
    ours = np.asarray(jax.nn.log_softmax(model(TOKENS).astype(jnp.float32)))
    assert divergence(half, ours) <= 1e-3 or divergence(exact, ours) <= 2 * divergence(exact, half)


def log_probs_of_transformers(folder, model_type, dtype):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=family_of(model_type).reference,
        experts_implementation="eager",  # the default needs sizes that are multiples of 8
    ).eval()  # fmt: skip
    with torch.no_grad():
        return torch.log_softmax(theirs(torch.tensor(TOKENS)).logits.float(), -1).numpy()


def divergence(expected, log_probs):
    """The median over tokens of the Kullback-Leibler divergence."""
    return np.median((np.exp(expected) * (expected - log_probs)).sum(-1))
