"""Weight processing (the tenth law): log-probabilities stay, to 1e-5 in float32 and 1e-11 in float64, and the weights
are what the passes promise. Where a pass would change what a model computes, it says so and does nothing.
"""

import functools
import gc
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import CONFIGS, LLAMA, SIZES, model, randomised, tokens
from support.tiny import hf_logits, random_tokens, write_checkpoint
from test_errors import Case

from jaxlens import Config, HookedTransformer, Rotary, weights
from jaxlens.checkpoints import export
from jaxlens.errors import CheckpointError
from jaxlens.nn.parameters import parameter_axes
from jaxlens.weights import PASSES, arithmetic, process_weights

GPT2 = {**SIZES, "act_fn": "gelu_new"}
MORE = {
    "biases to be made": Config(**GPT2, gated_mlp=True, biases=("norm",), tie_word_embeddings=True, embed_scale=3.0),
    "no biases": Config(**GPT2, biases=(), tie_word_embeddings=True, positional_embedding_type="none"),
    "some biases": Config(**GPT2, attn_only=True, biases=("b_Q", "b_V")),
    "solu": Config(**SIZES, act_fn="solu_ln", final_rms=True),
    "solu, RMS": Config(**SIZES, act_fn="solu_ln", normalization_type="RMS"),
    "LN after": Config(**GPT2, norm_placement="post"),
    "LN before and after": Config(**GPT2, norm_placement="both"),
    "LN, shortformer": Config(**GPT2, positional_embedding_type="shortformer"),
    "LN, experts": Config(**{**LLAMA, "normalization_type": "LN"}, num_experts=3, experts_per_token=2),
    "LN with bias, experts": Config(
        **{**LLAMA, "normalization_type": "LN", "biases": ("norm",)}, num_experts=3, experts_per_token=2,
        moe_layers=(False, True, True, True),
    ),
    "shared, biases to be made": Config(
        **GPT2, gated_mlp=True, biases=("norm",), parallel_attn_mlp=True, shared_norm=True,
        positional_embedding_type="rotary", rotary=Rotary(dim=2),
    ),
    "qwen2": Config(**{**LLAMA, "biases": ("b_Q", "b_K", "b_V")}),
    "narrow embedding": Config(**GPT2, d_embed=3),
    "wide embedding": Config(**GPT2, d_embed=40, tie_word_embeddings=True),
    "heads wider than the stream": Config(**{**GPT2, "d_model": 3, "d_head": 7, "biases": ("b_V", "norm")}),
}  # fmt: skip
ALL = {**CONFIGS, **MORE}
EVERYTHING = dict.fromkeys(PASSES, True)
every_config = pytest.mark.parametrize("name", ALL)


@functools.cache
def made(name: str, seed: int = 0, dtype: str = "float32") -> HookedTransformer:
    """A model of that config with random weights; in float64, with the same ones."""
    whole = model(name, seed) if name in CONFIGS else randomised(MORE[name], seed)
    if dtype == "float32":
        return whole
    params = {key: jnp.asarray(np.asarray(value, np.float64)) for key, value in whole.params.items()}
    return HookedTransformer(whole.cfg.replace(dtype=dtype), params=params)


def log_probs(the_model, given=None):
    logits = np.asarray(the_model(tokens() if given is None else given), np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def assert_close(ours, theirs, tolerance=1e-5):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * max(np.abs(theirs).max(), 1)


def only(*names):
    return {name: name in names for name in PASSES}


def applied(the_model):
    return [entry.name for entry in the_model.processing if entry.applied]


# --- what is computed stays


@every_config
@pytest.mark.parametrize("seed", [0, 1])
def test_all_passes_together_keep_the_log_probabilities(name, seed):
    assert_close(log_probs(made(name, seed).processed(**EVERYTHING)), log_probs(made(name, seed)))


@every_config
def test_each_pass_and_all_of_them_keep_the_log_probabilities_in_float64(name):
    with jax.enable_x64(True):
        whole = made(name, 2, "float64")
        expected = log_probs(whole)
        for passes in [EVERYTHING, *map(only, PASSES)]:
            processed = whole.processed(**passes)
            if applied(processed):
                assert {str(value.dtype) for value in processed.params.values()} == {"float64"}
                assert np.abs(log_probs(processed) - expected).max() <= 1e-11, passes


FAMILIES = {
    "gpt2": {}, "gpt_neo": {}, "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {"sliding_window": None}, "qwen2": {}, "qwen3": {"attention_bias": True}, "gemma2": {},
    "gemma3_text": {"attention_bias": True},
}  # fmt: skip


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_keeps_the_log_probabilities_of_transformers(tmp_path, model_type):
    folder = write_checkpoint(tmp_path / "theirs", model_type, seed=1, **FAMILIES[model_type])
    given = random_tokens(3, 24)
    theirs, ours = hf_logits(folder, given), HookedTransformer.from_pretrained(folder)
    expected = theirs - np.log(np.exp(theirs.astype(np.float64)).sum(-1, keepdims=True))
    assert "fold_ln" in applied(ours)
    assert np.abs(log_probs(ours, given) - expected).max() <= 1e-5 * np.abs(theirs).max()
    raw = HookedTransformer.from_pretrained_no_processing(folder)
    assert (raw.processing, raw.cfg.normalization_type) == ((), ours.cfg.normalization_type.removesuffix("Pre"))


def test_the_passes_can_be_traced_and_differentiated():
    """Under jit they give what they give outside; their derivative is that of finite differences."""
    raw, cfg = made("gpt2").params, CONFIGS["gpt2"]
    processed = jax.jit(lambda params: process_weights(params, cfg)[0])
    for key, value in process_weights(raw, cfg)[0].items():
        assert_close(processed(raw)[key], value, 1e-6)

    @jax.jit
    def size(params):
        return sum(jnp.sum(value**2) for value in process_weights(params, cfg)[0].values())

    rng = np.random.default_rng(0)
    direction = {key: jnp.asarray(rng.normal(size=value.shape), value.dtype) for key, value in raw.items()}
    before, after = (size({key: raw[key] + step * direction[key] for key in raw}) for step in (-0.01, 0.01))
    gradient = jax.grad(size)(raw)
    slope = sum(jnp.sum(gradient[key] * direction[key]) for key in raw)
    assert abs((after - before) / 0.02 - slope) <= 2e-3 * abs(slope)


# --- what the weights are afterwards


def of(letters):
    """Axis letters without the layer, and how many come after d_model."""
    return letters.split().index("d") - len(letters.split())


@every_config
def test_a_folded_model_has_no_norms_left_but_those_of_outputs_queries_and_keys(name):
    folded = made(name).processed(**only("fold_ln"))
    if folded.cfg.normalization_type in ("LN", "RMS"):
        assert not folded.processing[0].applied
        return
    norms = {key.rpartition(".")[0].rpartition(".")[2] for key in folded.params if key.endswith((".w", ".b"))}
    assert norms <= {"ln1_post", "ln2_post", "q_norm", "k_norm", "q_latent_norm", "kv_latent_norm", "ln"}
    assert ("norm" in folded.cfg.biases) <= (bool(norms & {"ln1_post", "ln"}) or not applied(folded))
    if applied(folded) and folded.cfg.normalization_type == "LNPre":
        readers = ("W_Q", "W_K", "W_V", "W_in", "W_gate", "W_router", *([] if folded.cfg.final_rms else ["W_U"]))
        for key, letters in parameter_axes(folded.cfg).items():
            if key.endswith(readers) and (folded.cfg.norm_placement != "post" or key == "unembed.W_U"):
                assert np.abs(np.asarray(folded.params[key]).mean(of(letters))).max() < 1e-6, key


@pytest.mark.parametrize("name", ["gpt2", "biases to be made", "shared, biases to be made", "gemma", "moe"])
def test_what_a_folded_norm_gives_is_what_the_maps_read(name):
    folded = made(name).processed(**only("fold_ln"))
    _, cache = folded.run_with_cache(tokens())
    for layer in range(folded.cfg.n_layers):
        block, read = folded.blocks[layer], cache["normalized", layer, "ln1"]
        heads = jnp.einsum("bpd,ndh->bpnh", read, block.attn.W_Q)
        assert_close(cache["q", layer], heads if block.attn.b_Q is None else heads + block.attn.b_Q)
        if folded.cfg.gated_mlp and not (folded.cfg.moe_layers and folded.cfg.moe_layers[layer]):
            read = read if folded.cfg.shared_norm else cache["normalized", layer, "ln2"]
            pre = jnp.einsum("bpd,dm->bpm", read, block.mlp.W_in)
            assert_close(cache["pre_linear", layer], pre if block.mlp.b_in is None else pre + block.mlp.b_in)


@pytest.mark.parametrize("name", ["gpt2", "gemma", "moe", "parallel", "LN before and after"])
def test_the_residual_stream_of_a_processed_model_adds_up_exactly(name):
    processed = made(name).processed()
    _, cache = processed.run_with_cache(tokens())
    for layer in range(processed.cfg.n_layers):
        pre, post, attn = cache["resid_pre", layer], cache["resid_post", layer], cache["attn_out", layer]
        if processed.cfg.parallel_attn_mlp:
            assert jnp.array_equal(pre + attn + cache["mlp_out", layer], post)
        else:
            assert jnp.array_equal(pre + attn, cache["resid_mid", layer])
            assert jnp.array_equal(cache["resid_mid", layer] + cache["mlp_out", layer], post)


@pytest.mark.parametrize("name", ["gpt2", "attn_only", "solu_ln", "biases to be made", "LN, experts", "gemma"])
def test_a_centred_model_writes_no_mean_and_its_logits_have_none(name):
    centred = made(name).processed(**only("center_writing_weights", "center_unembed"))
    logits, cache = centred.run_with_cache(tokens())
    done = applied(centred)
    assert ("center_unembed" in done) == (centred.cfg.output_logits_soft_cap is None)
    if "center_unembed" in done:
        assert np.abs(np.asarray(logits).mean(-1)).max() < 1e-5
    if "center_writing_weights" in done:
        written = [key for key in cache if key.endswith(("hook_embed", "attn_out", "mlp_out", "hook_resid_post"))]
        assert len(written) >= 2 * centred.cfg.n_layers
        assert all(np.abs(np.asarray(cache[key]).mean(-1)).max() < 1e-5 for key in written if "unembed" not in key)


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "some biases"])
def test_value_biases_go_through_every_head_s_own_output(name):
    whole = made(name)
    folded = whole.processed(**only("fold_value_biases"))
    assert not np.asarray(folded.b_V).any()
    assert_close(folded.b_O, whole.b_O + jnp.einsum("lnh,lnhd->ld", whole.b_V, whole.W_O))
    assert "b_O" in folded.cfg.biases


@pytest.mark.parametrize("name", ["gpt2", "neo", "shortformer", "some biases", "heads wider than the stream"])
def test_refactored_heads_have_the_same_products_in_singular_factors(name):
    whole = made(name)
    even = whole.processed(**only("refactor_factored_attn_matrices"))
    for product in (
        lambda m: jnp.einsum("lndh,lneh->lnde", m.W_Q, m.W_K),
        lambda m: jnp.einsum("lnh,lneh->lne", m.b_Q, m.W_K),
        lambda m: jnp.einsum("lnh,lndh->lnd", m.b_K, m.W_Q),
        lambda m: jnp.einsum("lndh,lnhe->lnde", m.W_V, m.W_O),
    ):
        assert_close(product(even), product(whole))
    rank = min(whole.cfg.d_head, whole.cfg.d_model)
    rows = even.W_O @ even.W_O.mT
    assert_close(rows, jnp.broadcast_to(jnp.diag(jnp.arange(whole.cfg.d_head) < rank), rows.shape))
    with_biases = [jnp.concatenate((W, b[:, :, None]), 2) for W, b in ((even.W_Q, even.b_Q), (even.W_K, even.b_K))]
    q, k = (jnp.einsum("lndh,lndi->lnhi", W, W) for W in with_biases)
    assert_close(q, k)
    assert_close(q, jnp.einsum("lnhh->lnh", q)[..., None] * np.eye(whole.cfg.d_head))


@every_config
def test_processing_twice_is_processing_once(name):
    once = made(name).processed()
    twice = once.processed()
    assert twice.cfg == once.cfg
    for key, value in once.params.items():
        assert_close(twice.params[key], value, 1e-6)
    assert twice.processing == once.processing


REFERENCE = Path(__file__).parent / "transformerlens_processed.json"


def reference_weights(shapes):
    """Weights that are the same here and where TransformerLens ran: cosines, each name's of a wavelength of its own."""
    found = {}
    for i, (name, shape) in enumerate(sorted(shapes.items())):
        values = np.cos(np.arange(np.prod(shape)) * (0.7 + 0.1 * i)).reshape(shape)
        found[name] = (values * 0.4 + name.endswith(".w")).astype(np.float32)
    return found


REFERENCE_CONFIGS = {
    "gpt2": {"act_fn": "gelu_new", "normalization_type": "LN", "positional_embedding_type": "standard"},
    "llama": {
        "act_fn": "silu", "gated_mlp": True, "n_key_value_heads": 2, "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
    },
}  # fmt: skip
REFERENCE_SIZES = {"n_layers": 2, "d_model": 10, "n_heads": 4, "d_head": 6, "d_mlp": 14, "d_vocab": 17, "n_ctx": 8}


def fingerprints(state_dict):
    """Three numbers for each weight, in which every entry counts with a weight of its own."""
    found = {}
    for name, value in state_dict.items():
        flat = np.asarray(value, np.float64).ravel()
        found[name] = [float(flat @ np.sin(np.arange(flat.size) * step + 1)) for step in (0.9, 1.7, 2.3)]
    return found


@pytest.mark.parametrize("name", REFERENCE_CONFIGS)
def test_processed_weights_are_those_of_transformerlens(name):
    expected = json.loads(REFERENCE.read_text())[name]
    whole = HookedTransformer(Config(**REFERENCE_SIZES, **REFERENCE_CONFIGS[name]))
    whole.load_and_process_state_dict(
        reference_weights({key: value.shape for key, value in whole.state_dict().items()})
    )
    ours = fingerprints(whole.state_dict())
    assert {key for key, values in expected.items() if key not in ours and any(values)} == set()
    for key, values in ours.items():
        assert np.allclose(values, expected[key], rtol=1e-5, atol=1e-5), key


# --- both models alive; memory


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma", "moe"])
def test_what_goes_in_stays_and_what_does_not_change_is_shared(name):
    whole = made(name)
    before = {key: np.array(value) for key, value in whole.params.items()}
    params, cfg, _ = process_weights(whole.params, whole.cfg)
    for key, value in whole.params.items():
        assert np.array_equal(value, before[key]), key
    shared = {key for key in params if params[key] is whole.params.get(key)}
    assert ("embed.W_E" in shared) == (cfg.normalization_type == "RMSPre")
    assert ("blocks.*.mlp.W_out" in shared) == (cfg.normalization_type == "RMSPre" and name != "moe")
    assert all(key in shared for key in params if "q_norm" in key or "_post" in key)
    assert list(params) == list(parameter_axes(cfg))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_at_most_one_weight_exists_twice_when_the_old_ones_are_given_up(name, monkeypatch):
    cfg = ALL[name].replace(tie_word_embeddings=True, d_model=64, d_mlp=300, d_vocab=500, d_vocab_out=500)
    params = dict(randomised(cfg).params)
    process_weights(params, cfg)  # compiled, so that no constants of programs come to life below
    sizes, live = {key: value.nbytes for key, value in params.items()}, []

    def bytes_alive():
        return sum(array.nbytes for array in jax.live_arrays())

    wait = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda leaf: live.append(bytes_alive()) or wait(leaf))
    gc.collect()
    before = bytes_alive()
    processed, _, _ = process_weights(params, cfg, consume=True)
    assert params == {}
    growth = sum(value.nbytes for value in processed.values()) - sum(sizes.values())
    small = 16 * sizes["blocks.*.ln1.w"]  # norms, which go last, and means
    assert len(live) > 5
    assert max(live) - before <= growth + max(sizes.values()) + small
    assert bytes_alive() - before <= growth + small


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "axis"), [((8, 64, 300), 1), ((8, 4, 64, 30), 2), ((8, 30, 64), 2), ((64, 900), 0)])
def test_no_weight_is_copied_to_float32_on_the_way(shape, axis, dtype):
    W = jax.ShapeDtypeStruct(shape, dtype)
    w = jax.ShapeDtypeStruct((*shape[:1], shape[axis]) if len(shape) > 2 else (shape[axis],), dtype)
    how = {"axis": axis, "offset": False}
    programs = arithmetic.mean_of.lower(W, w, **how), arithmetic.times_norm_weight_centred.lower(W, w, 0.0, **how)
    for program in (*programs, arithmetic.fold_bias.lower(W, w, None, axis=axis)):
        assert program.compile().memory_analysis().temp_size_in_bytes < np.prod(shape)


def test_half_precision_is_rounded_once():
    cfg = CONFIGS["gpt2"].replace(dtype="bfloat16")
    half = randomised(cfg)
    wide = HookedTransformer(
        cfg.replace(dtype="float32"), params={key: value.astype(jnp.float32) for key, value in half.params.items()}
    )
    for name in list(PASSES)[:4]:
        ours, theirs = half.processed(**only(name)), wide.processed(**only(name))
        for key, value in theirs.params.items():
            assert jnp.array_equal(ours.params[key], value.astype(jnp.bfloat16)), key


# --- on a model


def test_a_model_says_what_was_done_to_it():
    assert repr(made("gpt2")).endswith("processing: none; weights as in the checkpoint")
    assert repr(made("gpt2").processed(center_unembed=False)).endswith(
        "\n  processing:\n    fold_ln\n    center_writing_weights\n    fold_value_biases"
    )
    assert [str(entry) for entry in made("gemma").processed(**EVERYTHING).processing] == [
        "fold_ln: ln1_post and ln2_post keep their weights: no linear map follows them",
        "not center_writing_weights: an RMSNorm reads the residual stream, and depends on its mean",
        "not center_unembed: the logit soft cap is not invariant to adding a constant",
        "not fold_value_biases: the model has no value biases",
        "not refactor_factored_attn_matrices: queries and keys are rotated by their positions (rotary)",
    ]
    assert str(made("shortformer").processed().processing[0]) == "not fold_ln: the model has no norms"
    assert str(made("solu_ln").processed().processing[0]) == "not fold_ln: the norms are already folded"


def test_in_place_and_beside():
    twin = made("gpt2").with_params(made("gpt2").params)
    beside = twin.processed(fold_value_biases=False)
    assert twin.cfg.normalization_type == "LN" and twin.processing == ()
    twin.add_hook("hook_embed", lambda value, hook: value)
    assert twin.process_weights_(fold_value_biases=False) is None
    assert twin.processing == beside.processing and twin.cfg == beside.cfg
    assert all(jnp.array_equal(value, beside.params[key]) for key, value in twin.params.items())
    assert list(twin.list_hooks()) == ["hook_embed"]
    twin.process_weights_(center_unembed=False)
    assert applied(twin) == ["fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"]
    assert made("gpt2").cfg.normalization_type == "LN"


def test_centring_again_after_training():
    """Folded norms stay folded; weights that have moved since are centred once more."""
    twin = made("gpt2").processed()
    moved = twin.with_params({**twin.params, "embed.W_E": twin.params["embed.W_E"] + 1})
    again = moved.processed()
    assert np.abs(np.asarray(again.W_E).mean(-1)).max() < 1e-6
    assert again.processing == twin.processing


# --- state dicts


def test_a_state_dict_has_transformerlens_names_one_for_each_layer():
    whole = made("qwen2")
    found = whole.state_dict()
    assert {"embed.W_E", "blocks.0.ln1.w", "blocks.3.attn.W_Q", "blocks.3.attn._W_K", "blocks.2.attn._b_V",
            "blocks.1.mlp.W_gate", "ln_final.w", "unembed.W_U"} <= found.keys()  # fmt: skip
    assert "blocks.0.attn.W_K" not in found and "blocks.0.attn.W_K" in made("gpt2").state_dict()
    assert jnp.array_equal(found["blocks.2.attn._W_K"], whole.params["blocks.*.attn.W_K"][2])


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "moe", "gemma", "LN with bias, experts"])
def test_a_model_takes_its_weights_by_either_kind_of_name(name):
    whole = made(name)
    for state_dict in (whole.state_dict(), whole.params, {key: np.asarray(v) for key, v in whole.state_dict().items()}):
        other = HookedTransformer(whole.cfg, seed=5)
        other.load_state_dict(state_dict)
        assert other.cfg == whole.cfg
        assert all(jnp.array_equal(value, whole.params[key]) for key, value in other.params.items())


def test_a_state_dict_brings_biases_and_an_unembedding_of_its_own():
    """TransformerLens's has zeros for every bias, an unembedding also where it is tied, and its buffers."""
    whole = made("llama")
    more = {"unembed.W_U": whole.W_U, "unembed.b_U": jnp.zeros(whole.cfg.d_vocab)}
    for layer in range(whole.cfg.n_layers):
        more |= {f"blocks.{layer}.attn.b_Q": np.zeros((6, 4)), f"blocks.{layer}.attn._b_V": np.zeros((2, 4))}
        more |= {f"blocks.{layer}.attn.mask": np.ones(3), f"blocks.{layer}.attn.IGNORE": np.array(-np.inf)}
    other = HookedTransformer(whole.cfg)
    other.load_state_dict({**whole.state_dict(), **more})
    assert (other.cfg.biases, other.cfg.tie_word_embeddings) == (("b_Q", "b_V", "b_U"), False)
    assert_close(other(tokens()), whole(tokens()))
    other.load_and_process_state_dict({**whole.state_dict(), **more}, center_unembed=False)
    assert applied(other) == ["fold_ln", "fold_value_biases"]
    assert_close(other(tokens()), whole(tokens()))


@pytest.mark.parametrize("change", [{"unembed.b_U": np.ones(3)}, {"blocks.0.ln1.W": np.ones(14)}, {"ln_final.w": None}])
def test_a_state_dict_that_does_not_fit_changes_nothing(change):
    twin = made("gpt2").processed()
    raw = {key: value for key, value in {**made("gpt2").state_dict(), **change}.items() if value is not None}
    before = twin.params
    with pytest.raises(ValueError, match=r"do(es)? not fit the config"):
        twin.load_and_process_state_dict(raw)
    assert twin.cfg.normalization_type == "LNPre"
    assert all(value is before[key] for key, value in twin.params.items())


# --- export


def test_what_a_checkpoint_can_express_is_exported(tmp_path):
    """All passes but fold_ln, of GPT-2: transformers gives the processed model's logits."""
    theirs = write_checkpoint(tmp_path / "theirs", "gpt2")
    whole = HookedTransformer.from_pretrained(theirs, fold_ln=False)
    assert len(applied(whole)) == 3
    ours = export(tmp_path / "ours", whole.cfg, whole.params, whole.source)
    given = random_tokens(0)
    expected = np.asarray(whole(given))
    assert np.abs(hf_logits(ours, given) - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(expected - hf_logits(theirs, given)).max() > 0.1


@pytest.mark.parametrize(
    ("model_type", "passes", "text"),
    [
        ("gpt2", {}, "normalization_type is 'LNPre', not 'LN'.* fold_ln folded the weights of norms into"),
        ("qwen2", only("fold_value_biases"), "cannot express this model: biases.*fold_value_biases added b_O: "),
    ],
)
def test_what_no_checkpoint_can_express_is_refused_by_name(tmp_path, model_type, passes, text):
    whole = HookedTransformer.from_pretrained(write_checkpoint(tmp_path / "theirs", model_type), **passes)
    with pytest.raises(CheckpointError, match=text):
        export(tmp_path / "ours", whole.cfg, whole.params, whole.source)
    assert not (tmp_path / "ours").exists()


# --- mistakes


def run_pass(name, of):
    return getattr(weights, name)(made(of).params, made(of).cfg)


WRONG = "would change what this model computes: "
NORMED = Config(**GPT2, attn_only=True, qk_norm="head")
SHARED = Config(**GPT2, attn_only=True, n_key_value_heads=2)
INVALID = {
    ("fold_ln", "LN, shortformer"): "positions are added between ln1 and W_Q, W_K",
    ("fold_ln", "LN with bias, experts"): "experts have no bias that could absorb the bias of ln2",
    ("center_writing_weights", "llama"): "an RMSNorm reads the residual stream, and depends on its mean",
    ("center_writing_weights", "shortformer"): "a linear map reads the residual stream, and depends on its mean",
    ("center_writing_weights", "solu"): "the final RMSNorm reads the residual stream, and depends on its mean",
    ("center_writing_weights", "LN after"): "attention and MLP read the residual stream without a norm",
    ("center_writing_weights", "LN before and after"): "ln1_post and ln2_post write a mean to the residual stream",
    ("center_unembed", "gemma"): "the logit soft cap is not invariant to adding a constant",
    ("refactor_factored_attn_matrices", "parallel"): "queries and keys are rotated by their positions (rotary)",
}  # fmt: skip
MISTAKES = {
    f"{name} of {of}": Case(functools.partial(run_pass, name, of), ValueError, f"{name} {WRONG}{reason}")
    for (name, of), reason in INVALID.items()
} | {
    "a refactoring of normalised queries": Case(
        lambda: weights.refactor_factored_attn_matrices(HookedTransformer(NORMED).params, NORMED), ValueError,
        f"refactor_factored_attn_matrices {WRONG}queries and keys are normalized (qk_norm)",
    ),
    "a refactoring of shared keys": Case(
        lambda: weights.refactor_factored_attn_matrices(HookedTransformer(SHARED).params, SHARED), ValueError,
        f"refactor_factored_attn_matrices {WRONG}6 query heads share 2 key/value heads",
    ),
    "parameters of another config": Case(
        lambda: weights.center_unembed(made("gpt2").params, CONFIGS["llama"]), ValueError, "do not fit the config",
    ),
    "parameters of another config, processed": Case(
        lambda: process_weights(made("gpt2").params, CONFIGS["llama"], consume=True), ValueError, "do not fit the",
    ),
    "a state dict with a missing layer": Case(
        lambda: made("gpt2").load_state_dict(
            {key: value for key, value in made("gpt2").state_dict().items() if key != "blocks.3.attn.W_Q"}
        ), ValueError, "the state dict does not fit the config: missing ['blocks.3.attn.W_Q']; unknown []",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_with_what_was_wanted(mistake):
    case = MISTAKES[mistake]
    with pytest.raises(case.error) as raised:
        case.mistake()
    assert case.text in str(raised.value)


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_is_refused_alone_exactly_where_it_is_not_applied_for_a_reason_in_a_model(name):
    """Nothing to do is no mistake: then a pass gives back what it got."""
    idle = ("the model has no norms", "the norms are already folded", "the model has no value biases")
    for of in ("gpt2", "solu_ln", "shortformer", "qwen2", "gemma", "moe", "LN with bias, experts"):
        whole = made(of)
        (entry,) = whole.processed(**only(name)).processing
        if not entry.applied and entry.reason not in idle:
            with pytest.raises(ValueError, match="would change what this model computes"):
                run_pass(name, of)
            continue
        params, cfg = run_pass(name, of)
        assert (cfg == whole.cfg and all(params[key] is whole.params[key] for key in params)) >= (not entry.applied)
