"""Lines of TransformerLens's own tests and demos that once did not run here."""

import copy
import gc
import pickle
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from jaxlens.loading_from_pretrained import get_basic_config, get_pretrained_state_dict
from jaxlens.weight_processing import ProcessWeights
from support.mistakes import Case, unreached
from support.models import CONFIGS, model, tokens
from test_models import close
from test_text import word_tokenizer

import jaxlens
from jaxlens import Config, HookedTransformer, HookedTransformerConfig, HookError, Tokenizer
from jaxlens.transformer_lens import helpers
from jaxlens.weights import process_weights

SIZES = {"n_layers": 2, "d_model": 12, "n_heads": 3, "d_head": 4, "n_ctx": 8, "act_fn": "gelu"}


def fresh(name="gpt2") -> HookedTransformer:
    """A model whose config may change; weights and compiled programs are shared."""
    return model(name).with_params(model(name).params)


def speaking(pad_token=None) -> HookedTransformer:
    """A model of 14 tokens with a tokenizer that may have one more."""
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=word_tokenizer(), bos_token="<s>")
    d_vocab = len(tokenizer)
    if pad_token:
        tokenizer.add_special_tokens({"pad_token": pad_token})
    return HookedTransformer(Config(**SIZES, d_vocab=d_vocab), tokenizer)


# --- assignments to model.cfg


def test_a_switch_is_assigned():
    ours = fresh()
    before = set(ours.run_with_cache(tokens())[1])
    ours.cfg.use_attn_result = True
    assert ours.cfg.use_attn_result and not model("gpt2").cfg.use_attn_result
    assert {name.split(".", 2)[2] for name in set(ours.run_with_cache(tokens())[1]) - before} == {"attn.hook_result"}
    ours.cfg.use_attn_result = False
    assert set(ours.run_with_cache(tokens())[1]) == before


def test_the_default_of_bos_is_assigned():
    ours = speaking()
    ours.tokenizer.default_prepend_bos = False
    assert ours.to_tokens("john").tolist() == [[4]]
    ours.cfg.default_prepend_bos = True
    assert ours.to_tokens("john").tolist() == [[0, 4]]
    kept = ours.tokenizer
    ours.cfg.default_prepend_bos = False
    assert ours.to_tokens("john").tolist() == [[4]] and ours("john").shape == (1, 1, 14) and kept.default_prepend_bos


def test_a_number_is_assigned_and_compiled_programs_see_it():
    ours = fresh()
    compiled = jax.jit(lambda the_model: the_model(tokens()))
    before = compiled(ours)
    ours.cfg.attn_scale = 1.0
    expected = HookedTransformer(CONFIGS["gpt2"].replace(attn_scale=1.0), params=ours.params)(tokens())
    close(ours(tokens()), expected)
    close(compiled(ours), expected)
    assert not np.allclose(before, expected)
    close(compiled(model("gpt2")), before)


def test_a_config_that_was_kept_reads_the_fields_of_the_model():
    ours = fresh()
    cfg, plain = ours.cfg, CONFIGS["gpt2"]
    key, number = {cfg: "found"}, hash(cfg)
    cfg.use_attn_result = True
    cfg.eps = 0.5
    assert (cfg.use_attn_result, cfg.eps, ours.cfg.eps) == (True, 0.5, 0.5) and cfg.to_dict()["eps"] == 0.5
    assert hash(cfg) == number and key[cfg] == "found" and cfg == plain, "as a key it stays what it was"
    assert ours.cfg == plain.replace(eps=0.5) and type(ours.cfg.replace(eps=0.25)) is Config
    assert isinstance(ours.cfg, Config) and isinstance(ours.cfg, HookedTransformerConfig)
    for twin in (copy.copy(ours.cfg), copy.deepcopy(ours.cfg), pickle.loads(pickle.dumps(ours.cfg)), ours.cfg.plain):
        assert type(twin) is Config and twin == ours.cfg
    assert repr(ours.cfg) == repr(ours.cfg.plain)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, nnx.clone, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_a_model_has_its_own_config(copied):
    ours = fresh()
    ours.cfg.eps = 0.5
    other = copied(ours)
    other.cfg.eps = 0.25
    assert (ours.cfg.eps, other.cfg.eps) == (0.5, 0.25)
    assert jax.tree.structure(ours) == jax.tree.structure(ours.with_params(ours.params))


def test_other_fields_of_transformerlens_are_assigned():
    ours = fresh("llama")
    ours.cfg.init_weights = False
    ours.cfg.use_normalization_before_and_after = False  # its value already
    ours.cfg.dtype = torch.float16
    assert ours.W_Q.dtype == jnp.float16
    ours.cfg.model_name = "mine"
    ours.cfg.ungroup_grouped_query_attention = True
    assert ours.cfg.n_key_value_heads == 6 and ours.cfg.model_name == "mine"


def test_a_config_does_not_keep_a_model_alive():
    ours = HookedTransformer(Config(**SIZES, d_vocab=5))
    cfg, alive = ours.cfg, weakref.ref(ours)
    del ours
    gc.collect()
    assert alive() is None and cfg.n_layers == 2
    with pytest.raises(AttributeError, match=r"a Config cannot be changed; write cfg = cfg.replace\(eps=\.\.\.\)"):
        cfg.eps = 1.0


# --- arguments, hooks, arrays


def test_absent_caches_are_given():
    expected = fresh()(tokens())
    assert (fresh()(tokens(), past_kv_cache=None, shortformer_pos_embed=None) == expected).all()
    close(fresh().run_with_cache(tokens(), past_kv_cache=None)[0], expected)
    residual, _, shortformer_pos_embed, _ = fresh().input_to_embed(tokens())
    close(fresh()(residual, start_at_layer=0, shortformer_pos_embed=shortformer_pos_embed), expected)


@pytest.mark.parametrize("under", [lambda run: run, jax.jit], ids=["eager", "jit"])
def test_a_hook_returns_a_torch_tensor(under):
    new = np.random.default_rng(0).normal(size=(2, 11, 14)).astype(np.float32)
    hooks = [("blocks.1.hook_resid_pre", lambda value, hook: torch.tensor(new, requires_grad=True))]
    expected = model("gpt2")(new, start_at_layer=1)
    close(under(lambda m: m.run_with_hooks(tokens(), fwd_hooks=hooks))(model("gpt2")), expected)


def test_a_torch_tensor_of_another_dtype_is_refused():
    hooks = [("hook_embed", lambda value, hook: torch.zeros(value.shape, dtype=torch.bfloat16))]
    with pytest.raises(HookError, match="changed the dtype from float32 to bfloat16"):
        model("gpt2").run_with_hooks(tokens(), fwd_hooks=hooks)


def test_to_numpy_takes_tensors_and_dicts():
    to_numpy = jaxlens.utils.to_numpy
    half = torch.nn.Parameter(torch.tensor([1.5], dtype=torch.bfloat16))
    both = to_numpy({"torch": half, "jax": {"a": jnp.ones(2, jnp.bfloat16)}, "flax": nnx.Param(jnp.ones(1))})
    assert both["torch"].tolist() == [1.5] and both["jax"]["a"].dtype == np.float32 and both["flax"].tolist() == [1]
    assert to_numpy(torch.ones(1, requires_grad=True)).tolist() == [1] and to_numpy(np.float32(2)) == 2
    assert jaxlens.FactoredMatrix(torch.ones(3, 2), torch.ones(2, 3)).AB.shape == (3, 3)


def test_old_names_of_caching_hooks_work():
    ours, cache = fresh(), {}
    ours.cache_some(cache, lambda name: name.endswith("hook_z"))
    ours.hook_embed.enable_reshape(None)
    ours(tokens())
    assert list(cache) == [f"blocks.{layer}.attn.hook_z" for layer in range(4)]
    ours.reset_hooks()
    ours.cache_all(cache)
    ours(tokens())
    assert set(cache) == set(ours.run_with_cache(tokens())[1])


def test_random_numbers_of_the_host_are_seeded():
    drawn = []
    for _ in range(2):
        fresh().cfg.set_seed_everywhere(3)
        drawn.append(np.random.rand())
    assert drawn[0] == drawn[1]


def test_the_tokens_have_a_hook_point_on_request():
    ours = fresh()
    _, cache = ours.run_with_cache(tokens(), names_filter="hook_tokens")
    assert (cache["hook_tokens"] == tokens()).all() and "hook_tokens" not in ours.run_with_cache(tokens())[1]
    other = (tokens() + 1) % 37
    for run in (lambda m, t: m.run_with_hooks(t, fwd_hooks=HOOKS), jax.jit(lambda m, t: m(t, hooks=HOOKS))):
        close(run(ours, tokens()), ours(other))
    ours.cfg.use_hook_tokens = True
    _, cache = ours.run_with_cache(tokens(), return_type="loss", incl_bwd=True)
    assert next(iter(cache)) == "hook_tokens" and "hook_tokens_grad" not in cache and "hook_embed_grad" in cache
    made = HookedTransformer(HookedTransformerConfig(**SIZES, d_vocab=9, use_hook_tokens=True))
    assert made.run_with_cache([[1, 2]], pos_slice=-1)[1]["hook_tokens"].tolist() == [[2]]


HOOKS = (("hook_tokens", lambda value, hook: (value + 1) % 37),)


# --- tokenizers and vocabularies


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_pad_token_that_the_model_has_no_embedding_of(side):
    ours, texts = speaking("[PAD]"), ["john gave", "john gave mary"]
    assert (len(ours.tokenizer), ours.cfg.d_vocab, ours.tokenizer.pad_token_id) == (15, 14, 14)
    logits, short = ours(texts, padding_side=side), ours("john gave")
    close(logits[0, :3] if side == "right" else logits[0, 1:], short[0])
    batch = ours.to_tokens(texts, padding_side=side)
    close(ours(batch, padding_side=side), logits)
    close(jax.jit(lambda m, t: m(t, padding_side=side))(ours, batch), logits)
    each = [ours(text, return_type="loss", loss_per_token=True).sum() for text in texts]
    for given in (texts, batch):
        close(ours(given, return_type="loss", padding_side=side), sum(each) / 5)
    mask = np.asarray(batch) != 14
    close(ours(batch, attention_mask=mask)[0][mask[0]], short[0])


def test_such_a_token_is_an_error_where_it_is_read():
    ours = speaking("[PAD]")
    for row in ([0, 14, 4], [14, 0, 4]):
        with pytest.raises(ValueError, match="token 14 is out of the vocabulary; tokens are 0 to 13"):
            ours([row])
    with pytest.raises(ValueError, match="token 14 is out of the vocabulary"):
        ours.tokens_to_residual_directions(14)


def test_the_vocabulary_is_that_of_the_tokenizer(tmp_path):
    cfg = HookedTransformerConfig(**SIZES)
    assert (cfg.d_vocab, cfg.d_vocab_out, cfg.replace(n_ctx=5).d_vocab) == (-1, -1, -1)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=word_tokenizer(), bos_token="<s>")
    for given in (tokenizer, Tokenizer(tokenizer)):
        made = HookedTransformer(cfg, given)
        assert made.cfg.d_vocab == made.cfg.d_vocab_out == 14 and made("john gave").shape == (1, 3, 14)
    narrow = HookedTransformerConfig(**SIZES, d_vocab=-1, d_vocab_out=3)
    assert HookedTransformer(narrow, tokenizer).W_U.shape == (12, 3)
    tokenizer.save_pretrained(tmp_path)
    assert HookedTransformer({**SIZES, "tokenizer_name": str(tmp_path)}).W_E.shape == (14, 12)


# --- weights and configs by name


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_weights_are_processed_as_state_dicts(name):
    ours = model(name)
    state, cfg = ours.state_dict(), ours.cfg
    params, processed, _ = process_weights(ours.params, cfg)
    expected = HookedTransformer(processed, params=params).state_dict()
    together = ProcessWeights.process_weights(state, cfg)
    one_by_one = ProcessWeights.fold_layer_norm(state, cfg)
    for one_pass in ("center_writing_weights", "center_unembed", "fold_value_biases")[name == "llama" :]:
        one_by_one = getattr(ProcessWeights, one_pass)(one_by_one, cfg)
    for key, value in expected.items():
        close(together[key], value)
        close(one_by_one[key], value)
    folded = HookedTransformer(cfg, params=ours.params)
    folded.load_state_dict(ProcessWeights.fold_layer_norm(state, cfg))
    close(jax.nn.log_softmax(folded(tokens())), jax.nn.log_softmax(ours(tokens())))
    if name == "gpt2":
        assert set(ProcessWeights.refactor_factored_attn_matrices(state, cfg)) == set(state)


def test_the_arithmetic_of_one_weight():
    w, b, ln = (np.random.default_rng(0).normal(size=size) for size in ((2, 5, 3), (2, 3), (5,)))
    close(ProcessWeights.fold_layer_norm_bias_single(w, b, ln), b + (w * ln[None, :, None]).sum(-2))
    close(ProcessWeights.fold_layer_norm_weight_single(w, ln), w * ln[None, :, None])
    close(ProcessWeights.center_weight_single(w), w - w.mean(1, keepdims=True))


def test_helpers_give_the_numbers_of_torch(monkeypatch):
    x, w, b = (np.random.default_rng(0).normal(size=size).astype(np.float32) for size in ((2, 4, 5), (3, 5, 2), (3, 2)))
    close(helpers.simple_attn_linear(x, w, b), np.einsum("bpd,ndh->bpnh", x, w) + b)
    per_head = np.stack([x, x * 2, x * 3], 2)
    close(helpers.complex_attn_linear(per_head, w, b), np.einsum("bpnd,ndh->bpnh", per_head, w) + b)
    theirs = torch.addmm(torch.tensor(b[0]), torch.tensor(x[0]), torch.tensor(w[0]))
    close(helpers.vanilla_addmm(b[0], x[0], w[0]), theirs)
    close(helpers.batch_addmm(b[0], w[0], x)[0], theirs)
    close(helpers.xielu(jnp.array([2.0, -1.0])), [4.2, (np.expm1(-1) + 1) * 0.8 - 0.5])
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert helpers.get_hf_token() == "secret"
    partial = transformers.GPTNeoXConfig(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.25})
    assert helpers.get_rotary_pct_from_config(partial) == 0.25 and helpers.get_rotary_pct_from_config(None) == 1.0


def test_configs_and_weights_are_read_by_name(tmp_path):
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=12, n_layer=2, n_head=2, vocab_size=30))
    theirs.save_pretrained(tmp_path)
    basic = get_basic_config(str(tmp_path), n_ctx=16)
    assert (basic.d_model, basic.n_layers, basic.n_ctx, basic.d_mlp, basic.d_vocab) == (12, 2, 16, 48, 30)
    assert (basic.layer_norm_eps, basic.init_range, basic.debug) == (1e-5, 0.02, True)
    cfg = jaxlens.loading.get_pretrained_model_config(str(tmp_path))
    expected = HookedTransformer.from_pretrained_no_processing(str(tmp_path)).state_dict()
    for state in (
        get_pretrained_state_dict(str(tmp_path), cfg),
        get_pretrained_state_dict(str(tmp_path), cfg, hf_model=theirs, dtype=torch.float32),
    ):
        assert all((state[name] == value).all() for name, value in expected.items())
    assert len(jaxlens.loading.PYTHIA_CHECKPOINTS) == 154 and len(jaxlens.loading.STANFORD_CRFM_CHECKPOINTS) == 609


ARGUMENTS = {
    "dtype": torch.bfloat16, "n_devices": 1, "move_to_device": True, "trust_remote_code": False, "cache_dir": None,
    "local_files_only": True, "token": None, "device": "cpu", "default_padding_side": "left",
}  # fmt: skip


@pytest.mark.parametrize("of_dtype", ["dtype", "torch_dtype"])
def test_arguments_of_loading_are_accepted(tmp_path, of_dtype):
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=12, n_layer=2, n_head=2, vocab_size=30))
    theirs.save_pretrained(tmp_path)
    transformers.PreTrainedTokenizerFast(tokenizer_object=word_tokenizer(), bos_token="<s>").save_pretrained(tmp_path)
    options = {of_dtype: torch.float16, **{name: value for name, value in ARGUMENTS.items() if name != "dtype"}}
    ours = HookedTransformer.from_pretrained(str(tmp_path), **options)
    assert ours.W_Q.dtype == jnp.float16 and ours.tokenizer.padding_side == "left"
    assert ours.tokenizer.name_or_path == str(tmp_path)


# --- mistakes

def assigned(name, value):
    ours = fresh()
    setattr(ours.cfg, name, value)


MISTAKES = [
    Case(lambda: assigned("d_model", 28), ValueError, "would change the shapes of the model's parameters"),
    Case(lambda: assigned("d_modle", 28), AttributeError, "Config has no field 'd_modle'"),
    Case(lambda: fresh().hook_embed.enable_reshape(1), NotImplementedError, "reshape in the hook function"),
    Case(lambda: fresh()(tokens(), past_kv_cache=[]), TypeError, "past_kv_cache is a list; make one with"),
    Case(
        lambda: ProcessWeights.fold_layer_norm(fresh().state_dict(), fresh().cfg, fold_biases=False), ValueError,
        "fold_biases=False and center_weights=True are not supported",
    ),
    Case(lambda: ProcessWeights.center_unembed({}), ValueError, "cfg is None; pass the config of the state dict"),
    Case(lambda: ProcessWeights.center_unembed({}, adapter=object()), ValueError, "adapter is a object; jaxlens has"),
]  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: case.text[:40])
def test_mistakes_are_answered(case):
    case.check()


def test_every_error_has_a_case():
    assert not unreached(__file__, MISTAKES)
