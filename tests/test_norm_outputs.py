"""What attention and the MLP read: `ln1.hook_out` and `ln2.hook_out`, also called `attn.hook_in` and `mlp.hook_in`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from support.models import CONFIGS, model, randomised, tokens
from support.programs import compilations
from support.tiny import random_tokens, write_checkpoint
from test_hook_api import keep
from test_models import close, scaled

from jaxlens import ActivationNotFound, Config, HookedTransformer, HookError, hook
from jaxlens.analysis import activation_patch, attribution_patch, path_patch
from jaxlens.checkpoints.families import family_of
from jaxlens.hooks.table import sites

SHARED = ("attn.hook_in", "mlp.hook_in")
OUTPUTS = ("ln1.hook_out", "ln2.hook_out")
GIVEN = random_tokens(0, 8)

TRANSFORMERS = {
    "llama": ("model.layers.1.self_attn", "model.layers.1.mlp"),
    "gemma2": ("model.layers.1.self_attn", "model.layers.1.mlp"),
    "gpt2": ("transformer.h.1.attn", "transformer.h.1.mlp"),
    "gpt_neox": ("gpt_neox.layers.1.attention", "gpt_neox.layers.1.mlp"),
    "gptj": ("transformer.h.1.attn", "transformer.h.1.mlp"),
    "qwen3_moe": ("model.layers.1.self_attn", "model.layers.1.mlp"),
    "deepseek_v3": ("model.layers.1.self_attn", "model.layers.1.mlp"),
}
"""Attention and the MLP of layer 1, by model_type: plain, 1 + w, LayerNorm, parallel, shared norm, experts, latent."""

every_type = pytest.mark.parametrize("model_type", TRANSFORMERS)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A function from a model_type to the model here and in transformers, with the weights of the checkpoint."""

    @functools.cache
    def get(model_type: str):
        folder = write_checkpoint(tmp_path_factory.mktemp(model_type), model_type)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=family_of(model_type).reference
        )  # fmt: skip
        return HookedTransformer.from_pretrained_no_processing(folder), theirs.eval()

    return get


def run_transformers(theirs, module: str, edit=None):
    """The input of a module, the logits, and the gradient of their loss at the input; `edit` replaces the input."""
    seen = []

    def look(module, args, kwargs):
        value = args[0] if args else kwargs["hidden_states"]
        seen.append(value.clone() if edit is None else edit(value))  # attention and the MLP may read the same tensor
        seen[0].retain_grad()
        return ((seen[0], *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": seen[0]})

    handle = theirs.get_submodule(module).register_forward_pre_hook(look, with_kwargs=True)
    given = torch.tensor(GIVEN)
    output = theirs(given, labels=given, use_cache=False)
    handle.remove()
    output.loss.backward()
    return seen[0].detach().numpy(), output.logits.detach().numpy(), seen[0].grad.numpy()


def bent(value):
    """An edit of arrays of jax and of torch."""
    return value * 0.5 + value[..., :1]


@every_type
def test_values_gradients_and_edits_are_those_of_the_input_of_the_module_in_transformers(pair, model_type):
    ours, theirs = pair(model_type)
    names = [f"blocks.1.{site}" for site in SHARED]
    _, cache = ours.run_with_cache(GIVEN, return_type="loss", incl_bwd=True, names_filter=names)
    for name, module in zip(names, TRANSFORMERS[model_type], strict=True):
        value, _, gradient = run_transformers(theirs, module)
        close(cache[name], value)
        assert np.abs(gradient).max() > 1e-4
        assert np.abs(cache[f"{name}_grad"] - gradient).max() <= 1e-5 * np.abs(gradient).max()
        _, edited, _ = run_transformers(theirs, module, edit=bent)
        close(ours.run_with_hooks(GIVEN, fwd_hooks=[(name, lambda x, hook: bent(x))]), edited)
        close(ours.run_with_hooks(GIVEN, fwd_hooks=[(name, hook(lambda x, hook: bent(x)))]), edited)
        assert np.abs(edited - np.asarray(ours(GIVEN))).max() > 1e-2


def test_an_edit_of_a_shared_norm_changes_what_both_read(pair):
    ours, theirs = pair("gptj")
    handle = theirs.transformer.h[1].ln_1.register_forward_hook(lambda module, args, output: bent(output))
    with torch.no_grad():
        expected = theirs(torch.tensor(GIVEN)).logits.numpy()
    handle.remove()
    edit = lambda x, hook: bent(x)  # noqa: E731
    close(ours.run_with_hooks(GIVEN, fwd_hooks=[("blocks.1.ln1.hook_out", edit)]), expected)
    close(ours.run_with_hooks(GIVEN, fwd_hooks=[(f"blocks.1.{site}", edit) for site in SHARED]), expected)


# --- every config


@pytest.mark.parametrize("name", CONFIGS)
def test_the_output_of_a_norm_is_its_normalized_input_times_weight_plus_bias(name):
    the_model, cfg = model(name), CONFIGS[name]
    outputs = [site for site in (*OUTPUTS, *SHARED) if f"blocks.0.{site}" in sites(cfg)]
    if cfg.normalization_type not in ("LN", "RMS") or cfg.norm_placement not in ("pre", "both"):
        expected = ()
    elif cfg.attn_only:
        expected = ("ln1.hook_out",)
    else:
        expected = ("ln1.hook_out", *SHARED) if cfg.shared_norm else OUTPUTS
    assert outputs == list(expected)
    _, cache = the_model.run_with_cache(tokens())
    for site in outputs:
        norm = "ln2" if site == "ln2.hook_out" else "ln1"
        for layer in range(cfg.n_layers):
            of = getattr(the_model.blocks[layer], norm)
            w = of.w + 1 if cfg.rmsnorm_uses_offset else of.w
            expected = cache["normalized", layer, norm] * w + (0 if of.module.b is None else of.b)
            close(cache[f"blocks.{layer}.{site}"], expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_edit_is_the_same_however_it_runs(name):
    the_model, given = model(name), tokens()
    for site in [site for site in (*OUTPUTS, *SHARED) if f"blocks.1.{site}" in sites(CONFIGS[name])]:
        full = f"blocks.1.{site}"
        plain = the_model.run_with_hooks(given, fwd_hooks=[(full, lambda x, hook: bent(x))])
        close(the_model.run_with_hooks(given, fwd_hooks=[(full, hook(lambda x, hook: bent(x)))]), plain)
        traced = jax.jit(lambda m, t, n=full: m.run_with_hooks(t, fwd_hooks=[(n, lambda x, hook: bent(x))]))
        close(traced(the_model, given), plain)
        assert not np.allclose(plain, the_model(given), atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "shared_norm"])
def test_split_inputs_and_edits_of_what_is_read_go_together(name):
    the_model, given = model(name), tokens()
    for full in ("blocks.1.ln1.hook_out", "blocks.1.attn.hook_in", "blocks.1.mlp.hook_in"):
        edit = [(full, hook(scaled, by=2.0))]
        expected = the_model.run_with_hooks(given, fwd_hooks=edit)
        for split in ("hook_q_input", "hook_mlp_in"):
            both = [*edit, (f"blocks.1.{split}", keep)]
            close(the_model.run_with_hooks(given, fwd_hooks=both), expected)


def test_a_new_hook_compiles_nothing():
    the_model, given = model("shared_norm"), tokens(2, 8)
    the_model.run_with_hooks(given, fwd_hooks=[("blocks.0.hook_attn_out", keep)])
    with compilations() as compiled:
        for site in ("ln1.hook_out", *SHARED):
            the_model.run_with_hooks(given, fwd_hooks=[(f"blocks.2.{site}", lambda x, hook: np.asarray(x) * 1)])
    assert compiled == []


# --- names


@pytest.mark.parametrize(
    ("key", "full"),
    [
        (("ln2.hook_out", 3), "blocks.3.ln2.hook_out"),
        (("mlp.hook_in", 3), "blocks.3.ln2.hook_out"),
        (("attn.hook_in", -1), "blocks.3.ln1.hook_out"),
        (("out", 2, "ln1"), "blocks.2.ln1.hook_out"),
        (("in", 2, "mlp"), "blocks.2.ln2.hook_out"),
        ("blocks.1.attn.hook_in", "blocks.1.ln1.hook_out"),
        ("blocks.*.mlp.hook_in", "blocks.*.ln2.hook_out"),
    ],
    ids=str,
)
def test_keys_of_a_cache(key, full):
    _, cache = model("gpt2").run_with_cache(tokens())
    assert key in cache
    assert jnp.array_equal(cache[key], cache[full])
    close(cache.stack_activation("mlp.hook_in"), cache["blocks.*.ln2.hook_out"])


def test_hooks_filters_and_modules_take_both_names():
    the_model, given, fired = model("gpt2"), tokens(), []
    record = lambda x, hook: fired.append(hook.name)  # noqa: E731
    the_model.run_with_hooks(given, fwd_hooks=[("blocks.1.attn.hook_in", record), ("blocks.*.mlp.hook_in", record)])
    assert fired == ["blocks.0.ln2.hook_out", "blocks.1.ln1.hook_out", *(f"blocks.{i}.ln2.hook_out" for i in (1, 2, 3))]
    _, cache = the_model.run_with_cache(given, names_filter=["blocks.0.mlp.hook_in", "blocks.2.ln1.hook_out"])
    assert list(cache) == ["blocks.0.ln2.hook_out", "blocks.2.ln1.hook_out"]
    _, cache = the_model.run_with_cache(given, "loss", incl_bwd=True, names_filter="blocks.0.mlp.hook_in")
    assert jnp.array_equal(cache["blocks.0.mlp.hook_in_grad"], cache["blocks.0.ln2.hook_out_grad"])
    block = the_model.blocks[0]
    assert block.attn.hook_in.name == block.ln1.hook_out.name == "blocks.0.ln1.hook_out"
    assert block.mlp.hook_in.name == block.ln2.hook_out.name == "blocks.0.ln2.hook_out"
    assert (block.hook_in.name, block.hook_out.name) == ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post")
    assert model("shared_norm").blocks[0].mlp.hook_in.name == "blocks.0.mlp.hook_in"
    assert "blocks.0.ln2.hook_out" in the_model.hook_dict


def test_analyses_take_both_names():
    the_model, clean, corrupted = model("gpt2"), tokens(1, 8), tokens(1, 8, seed=1)
    metric = lambda logits: logits[0, -1, 3] - logits[0, -1, 5]  # noqa: E731
    scores = attribution_patch(the_model, clean, corrupted, metric, ["ln2.hook_out", "mlp.hook_in"])
    runs = [the_model.run_with_cache(given)[1]["blocks.*.ln2.hook_out"] for given in (clean, corrupted)]

    def patched(zeros):
        return metric(the_model(corrupted, hooks=[("blocks.*.mlp.hook_in", hook(_add_row, zeros=zeros))]))

    gradient = jax.grad(patched)(jnp.zeros_like(runs[0]))
    for node in scores:
        close(scores[node].values, ((runs[0] - runs[1]) * gradient).sum((1, 3)))
    swept = activation_patch(the_model, corrupted, clean, metric, "mlp.hook_in", ("layer", "pos"), progress=False)
    edit = lambda x, hook: x.at[:, 3].set(runs[0][2][:, 3])  # noqa: E731
    close(swept.values[2, 3], metric(the_model(corrupted, hooks=[("blocks.2.ln2.hook_out", edit)])))


def _add_row(value, hook, zeros):
    return value + zeros[hook.layer()]


def test_path_patching_recomputes_what_the_mlp_reads():
    """Its receiver is the residual stream before the norm; a path to the MLP moves `mlp.hook_in` through the norm."""
    the_model, clean, corrupted = model("gpt2"), tokens(1, 8), tokens(1, 8, seed=1)
    metric = lambda logits: logits[0, -1, 3]  # noqa: E731
    names = [f"blocks.{layer}.{site}" for layer, site in ((1, "hook_mlp_out"), (2, "hook_resid_mid"))]
    outputs = [the_model.run_with_cache(given, names_filter=names)[1] for given in (clean, corrupted)]
    moved = outputs[1][names[1]] + outputs[0][names[0]] - outputs[1][names[0]]
    read = the_model.blocks[2].ln2(moved)
    result = path_patch(the_model, corrupted, clean, metric, "mlp", senders=[1], receivers=[2], progress=False)
    close(result.values[0, 0], metric(the_model(corrupted, hooks=[("blocks.2.mlp.hook_in", lambda x, hook: read)])))


# --- models without these hook points


def folded():
    return model("gpt2").processed()


FOLDED = (
    'in this model: its norms have no weights (normalization_type="LNPre"), because fold_ln moved them into the next '
    "linear map or the checkpoint has none; load the model with fold_ln=False, or use "
)


@pytest.mark.parametrize(
    ("site", "instead"),
    [("ln1.hook_out", "ln1"), ("attn.hook_in", "ln1"), ("ln2.hook_out", "ln2"), ("mlp.hook_in", "ln2")],
)
def test_folded_weights_are_refused(site, instead):
    the_model = folded()
    for block in ("blocks.0", "blocks.*"):
        expected = f'no hook point "{block}.{site}" {FOLDED}"{block}.{instead}.hook_normalized"'
        for use in (
            lambda name: the_model.run_with_hooks(tokens(), fwd_hooks=[(name, keep)]),
            lambda name: the_model.add_hook(name, keep),
            lambda name: the_model.run_with_cache(tokens(), names_filter=["hook_embed", name]),
        ):
            with pytest.raises(HookError) as raised:
                use(f"{block}.{site}")
            assert expected in str(raised.value)
    _, cache = the_model.run_with_cache(tokens(), names_filter="hook_embed")
    for key in ((site, 0), (site, "*")):
        assert key not in cache
        with pytest.raises(ActivationNotFound, match=r"its norms have no weights .* fold_ln=False, or use"):
            cache[key]
    module, point = site.split(".")
    with pytest.raises(AttributeError, match=f'no hook point "blocks.0.{site}" in this model: its norms have no weig'):
        getattr(getattr(the_model.blocks[0], module), point)


def test_a_shared_norm_without_weights_and_models_without_a_norm():
    def message(cfg: Config, name: str) -> str:
        with pytest.raises(HookError) as raised:
            randomised(cfg).add_hook(name, keep)
        return str(raised.value)

    shared = CONFIGS["shared_norm"].replace(normalization_type="LNPre", biases=())
    assert message(shared, "blocks.0.mlp.hook_in").endswith('or use "blocks.0.ln1.hook_normalized"')
    assert message(shared, "blocks.0.ln2.hook_out").endswith("its config leaves that module out")
    assert message(CONFIGS["shared_norm"], "blocks.0.ln2.hook_out").endswith("its config leaves that module out")
    post, before = CONFIGS["post_norm"], "in this model: no norm precedes this input; use "
    assert message(post, "blocks.0.attn.hook_in").endswith(f'{before}"blocks.0.hook_resid_pre"')
    assert message(post, "blocks.*.mlp.hook_in").endswith(f'{before}"blocks.*.hook_resid_mid"')
    assert message(post, "blocks.0.ln1.hook_out").endswith("its config leaves that module out")
    bare = CONFIGS["parallel"].replace(normalization_type=None, biases=())
    assert message(bare, "blocks.0.mlp.hook_in").endswith(f'{before}"blocks.0.hook_resid_pre"')
    assert message(CONFIGS["attn_only"], "blocks.0.mlp.hook_in").endswith("its config leaves that module out")
    assert message(CONFIGS["gpt2"], "blocks.9.mlp.hook_in").endswith("the model has layers 0 to 3")
    assert 'did you mean "blocks.0.ln2.hook_out"' in message(CONFIGS["gpt2"], "blocks.0.ln2.hook_ou")


def test_hook_points_follow_the_config():
    the_model = model("gpt2").with_params(model("gpt2").params)
    the_model.hook_dict["hook_embed"].ctx["kept"] = 1
    the_model.add_hook("blocks.*.mlp.hook_in", keep)
    twin = the_model.processed()
    assert "blocks.0.ln2.hook_out" in the_model.hook_dict
    assert list(twin.hook_dict) == list(sites(twin.cfg))
    assert twin.hook_dict["hook_embed"].ctx == {"kept": 1}
    with pytest.raises(HookError, match=r'no hook point "blocks\.0\.ln2\.hook_out" in this model: its norms have no'):
        twin(tokens())
    twin.reset_hooks()
    twin(tokens())
    the_model.clear_contexts()
    grouped = model("llama").with_params(model("llama").params)
    grouped.set_ungroup_grouped_query_attention(True)
    assert "blocks.0.hook_attn_in" in grouped.hook_dict
