"""Matrix products are float32 in float32 models, on every device. Float64 models are float64 throughout."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from support.models import CONFIGS, model, randomised, tokens
from support.tiny import random_tokens, write_checkpoint
from transformers.models.llama import modeling_llama

from jaxlens import FactoredMatrix, HookedTransformer, SVDInterpreter, direct_logit_attribution, hook
from jaxlens.analysis import (
    activation_patch,
    attribution_patch,
    edge_attribution_patch,
    integrated_gradients,
    path_patch,
    residual_jacobian,
)
from jaxlens.transformer_lens.patching import get_act_patch_direct_path
from jaxlens.weights.factored_matrix import composition_scores


@pytest.fixture
def precisions(monkeypatch):
    """The default precisions during calls of einsum and matmul. Programs are traced again."""
    found = []

    def spied(original):
        def spy(*arguments, **options):
            assert "precision" not in options
            found.append(jax.config.jax_default_matmul_precision)
            return original(*arguments, **options)

        return spy

    monkeypatch.setattr(jnp, "einsum", spied(jnp.einsum))
    monkeypatch.setattr(jnp, "matmul", spied(jnp.matmul))
    jax.clear_caches()
    yield found
    jax.clear_caches()


def cached(name="gpt2"):
    return model(name).run_with_cache(tokens())[1]


def metric(logits):
    return logits[0, -1, 3] - logits[0, -1, 4]


def factored():
    A, B = np.random.default_rng(0).normal(size=(2, 3, 5, 2)).astype("float32")
    return FactoredMatrix(A, B.swapaxes(-1, -2))


CLEAN, CORRUPTED = tokens(1, 5, seed=0), tokens(1, 5, seed=1)
CALLS = {
    "a call": lambda: model("llama")(tokens()),
    "a call under jit": lambda: jax.jit(HookedTransformer.__call__)(model("llama"), tokens()),
    "a gradient": lambda: jax.grad(lambda params: model("llama").with_params(params)(tokens(), "loss"))(
        model("llama").params
    ),
    "a Python hook": lambda: model("llama").run_with_hooks(
        tokens(), fwd_hooks=[("blocks.1.hook_resid_pre", lambda value, hook: jnp.einsum("bpd->bpd", value))]
    ),
    "a data hook": lambda: model("llama").run_with_hooks(
        tokens(), fwd_hooks=[("hook_embed", hook(lambda value, hook, W: jnp.matmul(value, W), W=jnp.eye(14)))]
    ),
    "gradients in a cache": lambda: model("llama").run_with_cache(tokens(), return_type="loss", incl_bwd=True),
    "a layer": lambda: model("gpt2").blocks[1](jnp.ones((1, 3, 14))),
    "a module": lambda: model("gpt2").unembed(jnp.ones((1, 3, 14))),
    "projected components": lambda: cached().decompose_resid(project_output_onto=jnp.ones(14)),
    "results of heads": lambda: cached().stack_head_results(),
    "stored results of heads": lambda: cached().compute_head_results(),
    "projected neurons": lambda: cached().stack_neuron_results(-1, project_output_onto=jnp.ones(14)),
    "attributed logits": lambda: cached().logit_attrs(cached().decompose_resid(), tokens=3),
    "direct logit attribution": lambda: direct_logit_attribution(model("gpt2"), tokens(), [3, 4], unit="all"),
    "logit lens": lambda: cached().logit_lens(),
    "the product of a circuit": lambda: model("gpt2").OV.AB,
    "a product with a circuit": lambda: jnp.ones(14) @ model("gpt2").QK,
    "composition": lambda: model("gpt2").all_composition_scores("K"),
    "composition of two matrices": lambda: composition_scores(factored(), factored()),
    "singular values": lambda: factored().S,
    "eigenvalues": lambda: factored().eigenvalues,
    "a norm": lambda: factored().norm(),
    "residual directions": lambda: model("original").tokens_to_residual_directions(3),
    "W_U of a projected embedding": lambda: model("original").W_U,
    "singular vectors as logits": lambda: SVDInterpreter(model("gpt2")).get_singular_vectors("OV", 1, 2, head_index=1),
    "refactored weights": lambda: model("gpt2").processed(refactor_factored_attn_matrices=True),
    "patching": lambda: activation_patch(model("gpt2"), CORRUPTED, CLEAN, metric, "resid_pre"),
    "path patching": lambda: path_patch(model("gpt2"), CORRUPTED, CLEAN, metric, senders=[(0, 1)]),
    "direct paths": lambda: get_act_patch_direct_path(
        model("gpt2"), CORRUPTED, model("gpt2").run_with_cache(CLEAN)[1], model("gpt2").run_with_cache(CORRUPTED)[1],
        metric, 0, 1,
    ),
    "attribution of nodes": lambda: attribution_patch(model("gpt2"), CORRUPTED, CLEAN, metric),
    "attribution of edges": lambda: edge_attribution_patch(model("gpt2"), CORRUPTED, CLEAN, metric),
    "integrated gradients": lambda: integrated_gradients(model("gpt2"), CLEAN, metric, CORRUPTED, steps=2),
    "a Jacobian": lambda: residual_jacobian(model("gpt2"), CLEAN, 0, 1).dense(),
}  # fmt: skip


@pytest.mark.parametrize("what", CALLS)
def test_every_matrix_product_has_the_highest_precision(what, precisions):
    CALLS[what]()
    assert set(precisions) == {"highest"}
    assert jax.config.jax_default_matmul_precision is None


def test_a_precision_of_the_user_is_kept(precisions):
    with jax.default_matmul_precision("tensorfloat32"):
        model("gpt2")(tokens())
    assert set(precisions) == {"tensorfloat32"}


def test_runs_of_half_precision_models_keep_the_default(precisions):
    randomised(CONFIGS["gpt2"].replace(dtype="bfloat16"))(tokens())
    assert set(precisions) == {None}


class Wide(types.ModuleType):
    """torch, for code of transformers that computes some steps in float32 in models of any dtype."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


class WideRotary(torch.nn.Module):
    """Llama's rotary tables in float64."""

    def __init__(self, config):
        super().__init__()
        half = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        self.frequencies = 1 / config.rope_parameters["rope_theta"] ** half

    def forward(self, x, position_ids):
        angles = position_ids[..., None].double() * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


def test_a_float64_model_is_float64_at_late_positions(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path, "llama", dtype="float64", max_position_embeddings=1024)
    monkeypatch.setattr(modeling_llama, "torch", Wide("torch"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    theirs.model.rotary_emb = WideRotary(theirs.config)
    given = random_tokens(0, 1000, 1)
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(given)).logits.numpy()
    with jax.enable_x64(True):
        ours = np.asarray(HookedTransformer.from_pretrained_no_processing(str(folder), dtype="float64")(given))
    assert ours.dtype == np.float64
    assert np.abs(ours - expected).max() < 1e-12 * np.abs(expected).max()
