"""What stands between TransformerLens's vocabulary and jaxlens's own: configs, modules, hook points, loading.

That code written for TransformerLens gives its numbers is tested in test_transformerlens_snippets.py.
"""

import copy
import functools
import importlib
import os
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from jaxlens.loading_from_pretrained import get_official_model_name, get_pretrained_model_config
from support.mistakes import Case, unreached
from support.models import CONFIGS, model, tokens
from test_models import close
from test_text import word_tokenizer

import jaxlens
from jaxlens import Config, HookedTransformer, HookedTransformerConfig, HookError
from jaxlens.config import Linear, Llama3, Rotary, Yarn
from jaxlens.hooks.table import SWITCHES
from jaxlens.transformer_lens.config import FIXED, MEANINGLESS

SIZES = {"n_layers": 2, "d_model": 12, "d_head": 4, "d_vocab": 11, "n_ctx": 8}
ROTARY = {**SIZES, "positional_embedding_type": "rotary", "normalization_type": "RMS", "act_fn": "silu"}


def config(**fields) -> HookedTransformerConfig:
    return HookedTransformerConfig(**{**SIZES, **fields})


@pytest.fixture
def the_model() -> HookedTransformer:
    """A model without hooks; weights and compiled programs are shared."""
    return model("llama").with_params(model("llama").params)


# --- configs


def test_a_config_of_transformerlens_is_the_config_that_says_the_same():
    said = config(use_local_attn=True, window_size=3, attn_types=["local", "global"], use_attn_scale=False)
    assert said == Config(**SIZES, n_heads=3, windows=(3, None), attn_scale=1.0)
    assert said.replace(n_ctx=9) == Config(**{**SIZES, "n_ctx": 9}, n_heads=3, windows=(3, None), attn_scale=1.0)
    gemma = config(**ROTARY, use_normalization_before_and_after=True, use_qk_norm=True, final_rms=True)
    assert (gemma.norm_placement, gemma.qk_norm, gemma.use_qk_norm, gemma.final_rms) == ("both", "head", True, True)
    assert gemma.use_normalization_before_and_after and gemma.uses_rms_norm and not gemma.layer_norm_folding
    experts = config(num_experts=3, experts_per_token=2, act_fn="silu", gated_mlp=True)
    assert not experts.norm_topk_prob and config(attn_only=True, act_fn=None).attn_only
    assert experts.n_params == 2 * (4 * 12 * 12 + (3 * 12 * 48 + 12) * 3)


ROTARIES = {
    "plain": ({"rotary_base": 500.0, "rotary_dim": 2, "rotary_adjacent_pairs": True}, (Rotary(500.0, 2, True),) * 2),
    "linear": ({"rotary_scaling_factor": 8.0}, (Rotary(scaling=Linear(8.0)),) * 2),
    "llama 3": (
        {"use_NTK_by_parts_rope": True, "NTK_by_parts_factor": 32.0, "NTK_original_ctx_len": 4},
        (Rotary(scaling=Llama3(32.0, 1.0, 4.0, 4)),) * 2,
    ),
    "yarn": (
        {"use_yarn_rope": True, "yarn_factor": 4.0, "yarn_attention_factor": 1.1,
         "yarn_original_max_position_embeddings": 2},
        (Rotary(scaling=Yarn(4.0, 2, 1.1)),) * 2,
    ),
    "two bases": (
        {"rotary_base": 1e6, "rotary_base_local": 1e4, "rotary_scaling_factor": 2.0, "use_local_attn": True,
         "window_size": 2, "attn_types": ["local", "global"]},
        (Rotary(1e4), Rotary(1e6, scaling=Linear(2.0))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROTARIES)
def test_rotary_positions_are_read_as_they_were_written(name):
    fields, rotary = ROTARIES[name]
    cfg = config(**{**ROTARY, **fields})
    assert cfg.rotary == rotary
    for field, value in fields.items():
        assert getattr(cfg, field) == value, field


def test_a_config_keeps_its_own_fields_and_is_equal_without_them():
    cfg = config(model_name="mine", seed=5, use_attn_result=True)
    for same in (cfg, copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg)), HookedTransformerConfig.unwrap(cfg)):
        assert (same.model_name, same.seed, same.use_attn_result, same.switched_on) == (
            "mine", 5, True, frozenset(["attn.hook_result"])
        )  # fmt: skip
        assert same == cfg == Config.from_dict(cfg.to_dict())
        assert hash(same) == hash(Config.from_dict(cfg.to_dict()))
    assert cfg.replace(n_ctx=5).seed == 5


def test_fields_without_a_meaning_are_accepted_and_have_one_value():
    given = dict.fromkeys(MEANINGLESS, True)
    cfg = config(**given, device="cuda", n_params=3, layer_norm_folding=False, **FIXED)
    assert cfg == config()
    assert all(getattr(cfg, name) == value for name, value in (MEANINGLESS | FIXED).items())
    assert isinstance(cfg.device, jax.Device)


def test_the_first_weights_are_those_of_the_seed():
    one, same, other = (HookedTransformer(config(seed=seed)).W_E for seed in (1, 1, 2))
    assert jnp.array_equal(one, same) and not jnp.array_equal(one, other)
    assert jnp.array_equal(HookedTransformer(config(seed=1), seed=2).W_E, other)
    twin = HookedTransformer(config(seed=1))
    twin.load_state_dict({name: w * 0 for name, w in twin.state_dict().items()})
    twin.init_weights()
    assert jnp.array_equal(twin.W_E, one)


def test_a_model_loads_the_tokenizer_that_its_config_names(tmp_path):
    transformers.PreTrainedTokenizerFast(tokenizer_object=word_tokenizer(), bos_token="<s>").save_pretrained(tmp_path)
    named = HookedTransformer(config(d_vocab=20, tokenizer_name=str(tmp_path)))
    assert named.to_tokens("john gave").tolist() == [[0, 4, 11]]


# --- switches, modules, hook points


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_puts_its_hook_points_into_every_cache(switch):
    twin = model("gpt2").with_params(model("gpt2").params)
    plain = set(twin.run_with_cache(tokens())[1])
    getattr(twin, f"set_{switch}")(True)
    with_switch = set(twin.run_with_cache(tokens())[1])
    sites = SWITCHES[switch]
    in_blocks = {f"blocks.{layer}.{site}" for layer in range(4) for site in sites}
    assert with_switch - plain == (in_blocks if switch != "use_hook_tokens" else {*sites})
    assert getattr(twin.cfg, switch) and not getattr(model("gpt2").cfg, switch)
    getattr(twin, f"set_{switch}")(False)
    assert set(twin.run_with_cache(tokens())[1]) == plain


def test_a_switch_is_seen_by_a_program_compiled_before():
    names = jax.jit(lambda m, t: m.run_with_cache(t, return_cache_object=False)[1])
    twin = model("gpt2").with_params(model("gpt2").params)
    before = set(names(twin, tokens()))
    twin.set_use_attn_result(True)
    assert set(names(twin, tokens())) - before == {f"blocks.{layer}.attn.hook_result" for layer in range(4)}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_ungrouped_model_computes_the_same(name):
    twin, cfg = model(name).with_params(model(name).params), CONFIGS[name]
    twin.set_ungroup_grouped_query_attention(True)
    logits, cache = twin.run_with_cache(tokens(), names_filter="blocks.1.attn.hook_k")
    close(logits, model(name)(tokens()))
    assert cache["k", 1].shape[2] == cfg.n_heads
    assert model(name).cfg.n_key_value_heads == cfg.n_key_value_heads


@pytest.mark.parametrize("name", CONFIGS)
def test_modules_compute_what_the_model_does(name):
    the_model, cfg = model(name), CONFIGS[name]
    logits, cache = the_model.run_with_cache(tokens())
    close(the_model.blocks[1](cache["resid_pre", 1]), cache["resid_post", 1])
    last = cache["resid_post", -1]
    close(the_model.unembed(last if the_model.ln_final is None else the_model.ln_final(last)), logits)
    close(the_model.embed(tokens()), cache["embed"])
    if the_model.pos_embed is not None:
        close(the_model.pos_embed(tokens()), cache["pos_embed"])
    if cfg.norm_placement == "pre" and cfg.positional_embedding_type != "shortformer":
        block, read = the_model.blocks[2], cache["resid_pre", 2]
        read = block.ln1(read)
        close(block.attn(read, read, read) * cfg.residual_scale, cache["attn_out", 2])
        if not (cfg.attn_only or cfg.parallel_attn_mlp):
            close(block.mlp(block.ln2(cache["resid_mid", 2]))[0, 3] * cfg.residual_scale, cache["mlp_out", 2][0, 3])


def test_a_mask_reaches_attention_and_positions_by_their_modules():
    the_model, mask = model("gpt2"), jnp.ones((2, 11), jnp.int32).at[0, :3].set(0)
    _, cache = the_model.run_with_cache(tokens(), attention_mask=mask)
    read = the_model.blocks[0].ln1(cache["resid_pre", 0])
    close(the_model.blocks[0].attn(read, read, read, attention_mask=mask)[0, 3:], cache["attn_out", 0][0, 3:])
    close(the_model.pos_embed(tokens(), attention_mask=mask), cache["pos_embed"])
    close(the_model.blocks[1](cache["resid_pre", 1], mask)[:, 3:], cache["resid_post", 1][:, 3:])


def test_weights_of_modules_are_those_of_their_layer():
    the_model, params = model("llama"), model("llama").params
    attn = the_model.blocks[-1].attn
    assert jnp.array_equal(attn._W_K, params["blocks.*.attn.W_K"][3])
    assert jnp.array_equal(attn.W_V, jnp.repeat(attn._W_V, 3, axis=0))
    assert attn.b_K.shape == (6, 4) and attn._b_V.shape == (2, 4) and not attn.b_Q.any()
    assert jnp.array_equal(attn.module.W_K, attn._W_K)
    assert the_model.unembed.W_U.shape == (14, 37), "a tied unembedding is there"
    assert repr(the_model.blocks[1].mlp) == "GatedMLP(blocks.1.mlp)"
    assert [block.name for block in the_model.blocks] == [f"blocks.{layer}" for layer in range(4)]
    modules = the_model.mod_dict
    assert jnp.array_equal(modules["blocks.2.ln1"].w, params["blocks.*.ln1.w"][2])
    assert {"embed", "unembed", "ln_final", "blocks.3.mlp", "blocks.0.attn.hook_z"} < set(modules)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_modules_can_be_copied_and_pickled(copied):
    blocks, attn = model("llama").blocks, model("llama").blocks[2].attn
    for view in (copied(attn), copied(blocks[2]).attn, copied(blocks)[2].attn):
        assert type(view) is type(attn) and view.name == attn.name
        assert jnp.array_equal(view.W_V, attn.W_V) and jnp.array_equal(view._W_K, attn._W_K)
        close(view(*[jnp.ones((1, 3, 14))] * 3), attn(*[jnp.ones((1, 3, 14))] * 3))


def test_hooks_are_taken_off_one_hook_point_of_several(the_model):
    the_model.add_hook(lambda name: name.endswith("hook_mlp_out"), lambda value, hook: value * 0)
    the_model.add_perma_hook("blocks.1.hook_mlp_out", lambda value, hook: value)
    point = the_model.blocks[1].hook_mlp_out
    assert len(point.fwd_hooks) == 2 and not point.bwd_hooks
    point.remove_hooks(dir="bwd")
    point.remove_hooks(level=7)
    assert len(point.fwd_hooks) == 2
    point.remove_hooks()
    assert [handle.is_permanent for handle in point.fwd_hooks] == [True]
    assert sorted(the_model.list_hooks(including_permanent=False)) == [f"blocks.{n}.hook_mlp_out" for n in (0, 2, 3)]
    point.remove_hooks("both", including_permanent=True)
    assert not point.has_hooks()
    point.add_perma_hook(lambda gradient, hook: gradient, dir="bwd")
    assert point.has_hooks("bwd") and not point.has_hooks("fwd") and not point.has_hooks(including_permanent=False)
    assert point.has_hooks(level=0) and not point.has_hooks(level=1)
    point.ctx["a"] = 1
    assert the_model.hook_dict[point.name].ctx == {"a": 1}
    point.clear_context()
    assert the_model.hook_dict[point.name].ctx == {}


def test_caching_hooks_keep_what_is_asked_for(the_model):
    stored, hooks, _ = the_model.get_caching_hooks(
        ["blocks.1.hook_resid_post", "hook_embed"], remove_batch_dim=True, pos_slice=[1, -1], device="cpu"
    )
    the_model.run_with_hooks(tokens(1), fwd_hooks=hooks)
    assert {name: value.shape for name, value in stored.items()} == {
        "blocks.1.hook_resid_post": (2, 14), "hook_embed": (2, 14)
    }  # fmt: skip
    everything = the_model.add_caching_hooks()
    _, cache = the_model.run_with_cache(tokens())
    the_model.reset_hooks()
    assert sorted(everything) == sorted(cache)


@pytest.mark.parametrize("traced", [jax.jit, jax.grad])
def test_caching_hooks_store_no_tracers(the_model, traced):
    stored = the_model.add_caching_hooks("blocks.1.hook_resid_post")

    def run(by):
        return the_model(the_model.embed(tokens()) * by, start_at_layer=0).sum()

    with pytest.raises(HookError, match=r"caching hooks store concrete values.*return the cache of run_with_cache"):
        traced(run)(1.0)
    assert not stored
    the_model(tokens())
    assert list(stored) == ["blocks.1.hook_resid_post"]


# --- hooks, and what is said of torch's habits


def edit(fn, name="blocks.1.attn.hook_z"):
    return model("gpt2").run_with_hooks(tokens(), fwd_hooks=[(name, fn)])


def said(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def adds_in_place(z, hook):
    z += 1


def scales_one_layer_in_place(z, hook, layer):
    if hook.layer() == layer:
        z *= 2


class Adds:
    def in_place(self, z, hook):
        z -= 1

    def and_returns(self, z, hook):
        z -= 1
        return z


def captured_in_place(z, hook):
    z @= jnp.eye(4)
    return None if (lambda: z.ndim)() else z


@pytest.mark.parametrize(
    "fn", [adds_in_place, functools.partial(scales_one_layer_in_place, layer=1), Adds().in_place, captured_in_place],
    ids=["plain", "partial", "method", "closure"],
)  # fmt: skip
def test_an_edit_in_place_that_would_be_lost_is_an_error(fn):
    with pytest.raises(HookError, match=r"edits `z` in place and returns nothing.*return z \+ new"):
        edit(fn)


def test_an_edit_in_place_of_something_else_or_that_is_returned_is_none():
    count = [0]

    def counts(z, hook):
        total = 0
        total += 1
        count[0] += total

    edit(counts)
    assert count == [1]
    close(edit(Adds().and_returns), edit(lambda z, hook: z - 1))
    with pytest.raises(HookError, match="returned slice"):
        edit(slice)  # written in C: it has no signature to be read


@pytest.mark.parametrize(
    ("fn", "form"),
    [
        (lambda z, hook: z.__setitem__(0, 1), "return value.at[:, 0].set(new)"),
        (lambda z, hook: z.permute(0, 1, 3, 2), "lists the JAX forms of torch code"),
        (lambda z, hook: z.mean(dim=0), "lists the JAX forms of torch code"),
    ],
)
def test_habits_of_torch_are_answered_with_the_forms_of_jax(fn, form):
    with pytest.raises((TypeError, AttributeError)) as raised:
        edit(fn)
    assert 'in the hook on "blocks.1.attn.hook_z"' in said(raised.value)
    assert form in said(raised.value)
    assert said(raised.value).count("in the hook on") == 1


def test_any_error_in_a_hook_says_where_it_was():
    with pytest.raises(ZeroDivisionError) as raised:
        edit(lambda value, hook: 1 / 0, "hook_embed")
    assert raised.value.__notes__ == ['in the hook on "hook_embed"']


# --- moving, casting, loading


def test_a_model_is_moved_and_cast_in_place(the_model):
    assert the_model.cpu() is the_model.to(jax.devices()[0]) is the_model
    the_model.to("bfloat16")
    assert the_model.cfg.dtype == "bfloat16" and the_model.W_Q.dtype == the_model(tokens()).dtype == jnp.bfloat16
    assert model("llama").W_Q.dtype == jnp.float32
    close(the_model.to(jnp.float32)(tokens()), model("llama")(tokens()), 0.05)
    assert the_model.training is False and the_model.train() is the_model.eval() is the_model.requires_grad_()
    the_model.zero_grad()


def test_the_device_of_a_config_is_that_of_the_weights(tmp_path):
    code = """
import copy, jax, jax.numpy as jnp, jaxlens
cfg = jaxlens.Config(n_layers=1, d_model=4, n_heads=2, d_head=2, d_vocab=5, n_ctx=4)
first, second = jax.devices()
model = jaxlens.HookedTransformer(cfg)
assert model.cfg.device == first
model.to("cpu:1").set_use_attn_result(True)
for one in (model, copy.deepcopy(model), model.with_params(model.params), model.to("bfloat16")):
    assert one.cfg.device == second and one.W_E.devices() == {second}
    assert (one.W_E + jnp.zeros(4, one.cfg.dtype, device=one.cfg.device)).devices() == {second}
model.init_weights()
assert model.cfg.device == second and model.W_E.devices() == {second}
assert cfg.device == first and model.cpu().cfg.device == first
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **flags})


def test_a_model_is_spread_over_devices_by_a_sharding_that_fits(the_model):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    assert the_model.to(sharding).W_E.sharding == sharding
    close(the_model(tokens()), model("llama")(tokens()))


def test_weights_that_are_missing_stay_unless_the_state_dict_must_be_whole(the_model):
    bigger = {"blocks.1.mlp.W_out": the_model.state_dict()["blocks.1.mlp.W_out"] * 2, "nothing": np.ones(3)}
    the_model.load_state_dict(bigger, strict=False)
    close(the_model.W_out[1], 2 * model("llama").W_out[1])
    close(the_model.W_out[0], model("llama").W_out[0])


@functools.cache
def gpt2_of_transformers():
    torch.manual_seed(0)
    sizes = {"n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 30}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()


def test_a_model_of_transformers_has_the_tokenizer_of_the_name(tmp_path, monkeypatch):
    transformers.PreTrainedTokenizerFast(tokenizer_object=word_tokenizer(), bos_token="<s>").save_pretrained(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(tmp_path))
    for name in (str(tmp_path), "tuned"):
        named = HookedTransformer.from_pretrained(name, hf_model=gpt2_of_transformers())
        assert named.to_tokens("john gave").tolist() == [[0, 4, 11]]
    given = HookedTransformer.from_pretrained("tuned", hf_model=gpt2_of_transformers(), tokenizer=word_tokenizer())
    assert given.to_tokens("john gave").tolist() == [[4, 11]]  # this tokenizer has no BOS token


def test_a_model_of_transformers_is_loaded_by_way_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    theirs = gpt2_of_transformers()
    with pytest.warns(UserWarning, match="the model has no tokenizer: the tokenizer 'tuned' is not a local folder"):
        ours = HookedTransformer.from_pretrained_no_processing(
            "tuned", hf_model=theirs, device="cpu", default_prepend_bos=False, n_devices=1, move_to_device=True
        )
    assert ours.tokenizer is None
    assert (ours.name, ours.cfg.model_name, ours.cfg.default_prepend_bos) == ("tuned", "tuned", False)
    given = tokens(2, 9, d_vocab=30)
    with torch.no_grad():
        close(ours(given), theirs(torch.tensor(np.asarray(given), dtype=torch.int64)).logits)
    theirs.save_pretrained(tmp_path)
    cfg = get_pretrained_model_config(str(tmp_path))
    assert cfg == ours.cfg.replace(default_prepend_bos=True) and cfg.model_name == tmp_path.name


def test_padding_goes_where_the_model_was_told():
    tokenizer = jaxlens.Tokenizer(word_tokenizer(), bos_token="<s>", pad_token="<pad>")
    left = HookedTransformer(config(d_vocab=20), tokenizer, default_padding_side="left", move_to_device=True)
    assert left.to_tokens(["john gave", "mary"]).tolist() == [[0, 4, 11], [1, 0, 6]]


# --- errors


def made(**fields):
    return lambda: config(**fields)


def loading(**arguments):
    return lambda: HookedTransformer.from_pretrained("nothing", **arguments)


def attn():
    return model("gpt2").blocks[0].attn


def sharding_of_columns(axis_type=jax.sharding.AxisType.Auto):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",), axis_types=(axis_type,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))


def filled(the_model):
    return the_model.run_with_hooks(tokens(), fwd_hooks=the_model.get_caching_hooks()[1])


ERRORS = {
    "a field of neither": Case(
        made(d_modle=3), ValueError, "neither Config nor TransformerLens has a field ['d_modle']"
    ),
    "bidirectional attention": Case(
        made(attention_dir="bidirectional"), ValueError, "attention_dir='bidirectional' is not supported"
    ),
    "a device that is assigned": Case(lambda: config().with_field("device", "tpu"), ValueError, "use model.to(device)"),
    "a field that others say": Case(
        lambda: config().with_field("use_qk_norm", True), ValueError, "use_qk_norm=True cannot be assigned, because"
    ),
    **{
        f"no name in {module}": Case(
            lambda module=module: importlib.import_module(f"jaxlens.{module}").nothing, AttributeError,
            "has no attribute 'nothing'",
        )
        for module in (
            "config.hooked_transformer_config", "head_detector", "hook_points", "loading_from_pretrained", "tools",
            "utilities",
        )
    },
    "a name of the bridge": Case(lambda: jaxlens.utilities.aliases, ImportError, "it belongs to TransformerBridge"),
    "a module of the bridge": Case(lambda: importlib.import_module("jaxlens.model_bridge"), ImportError, "belongs to"),
    "heads that do not fill the model": Case(made(d_head=5), ValueError, "d_head = 5 does not divide d_model"),
    "local attention without a window": Case(
        made(use_local_attn=True), ValueError, "use_local_attn needs window_size and attn_types"
    ),
    "a field that is read of none": Case(lambda: config().d_modle, AttributeError, "has no field 'd_modle'"),
    "an argument of none": Case(loading(devise="cpu"), TypeError, "there is no argument 'devise'"),
    "several devices": Case(
        loading(n_devices=2),
        ValueError,
        "n_devices is 2; there are 1 devices from",
    ),
    "two training checkpoints": Case(
        loading(checkpoint_label=3, checkpoint_value=4), ValueError,
        "checkpoint_label is 3 and checkpoint_value is 4; pass only checkpoint_value",
    ),
    "a training checkpoint of other weights": Case(
        loading(checkpoint_index=3, hf_model=object()), ValueError, "checkpoint_index and hf_model are given; expected"
    ),
    "a name of no table": Case(
        lambda: get_official_model_name("pythia-71m"), ValueError, "did you mean 'pythia-70m' or 'pythia-31m' or"
    ),
    "a model left where it is": Case(
        lambda: HookedTransformer(config(), move_to_device=False),
        ValueError,
        "move_to_device=False is not supported (only True): arrays are created on JAX's",
    ),
    "a module's hook point of none": Case(
        lambda: attn().hook_mlp_out, AttributeError, 'no hook point "blocks.0.attn.hook_mlp_out" in this model'
    ),
    "a raw weight that is not grouped": Case(lambda: attn()._W_Q, AttributeError, "blocks.0.attn has no '_W_Q'"),
    "a layer that is no number": Case(
        lambda: model("gpt2").blocks["a"], TypeError, "model.blocks is indexed by a layer number"
    ),
    "a layer of none": Case(lambda: model("gpt2").blocks[4], IndexError, "there is no layer 4; the model has 4"),
    "hooks that cache gradients": Case(
        lambda: model("gpt2").add_caching_hooks(incl_bwd=True), ValueError, "run_with_cache(..., incl_bwd=True)"
    ),
    "an edit that is lost": Case(lambda: edit(adds_in_place), HookError, "so the edit is lost"),
    "an encoder": Case(lambda: jaxlens.HookedEncoder, ImportError, "jaxlens has no HookedEncoder: jaxlens runs"),
    "a name of none": Case(lambda: jaxlens.nothing, AttributeError, "module 'jaxlens' has no attribute 'nothing'"),
    "hooks that stay of a cache": Case(
        lambda: model("gpt2").run_with_cache(tokens(), reset_hooks_end=False), ValueError,
        "reset_hooks_end must be True; use add_caching_hooks",
    ),
    "a sharding of matrices": Case(
        lambda: model("gpt2").to(sharding_of_columns()), ValueError,
        "does not fit ln_final.w, of shape (14,); expected a device or a sharding that fits every parameter",
    ),
    "a sharding of matrices, explicit": Case(
        lambda: model("gpt2").to(sharding_of_columns(jax.sharding.AxisType.Explicit)), ValueError,
        "does not fit ln_final.w, of shape (14,); expected a device or a sharding that fits every parameter",
    ),
    "a cache of tracers": Case(
        lambda: jax.jit(filled)(model("gpt2")), HookError, "caching hooks store concrete values, but the value at"
    ),
    "a method of none": Case(
        lambda: attn().__setstate__, AttributeError, "ModuleView has no '__setstate__'"
    ),
    "a device of none": Case(lambda: model("gpt2").to("tpu:3"), ValueError, "there is no device 'tpu:3'"),
    "a direction of none": Case(
        lambda: model("gpt2").hook_embed.remove_hooks("sideways"), HookError, 'a direction is "fwd", "bwd" or "both"'
    ),
}


@pytest.mark.parametrize("case", ERRORS.values(), ids=ERRORS)
def test_a_mistake_is_answered_with_what_was_wanted(case):
    case.check()


def test_every_error_is_reached_by_a_case():
    assert unreached(__file__, ERRORS.values()) == []
