"""Config: every field changes the model (the ninth law), and every config survives being written down."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import CONFIGS, tokens
from test_text import word_tokenizer

from jaxlens import Config, HookedTransformer, Tokenizer
from jaxlens.config import Dynamic, Linear, Llama3, LongRope, Rotary, Scaling, Yarn
from jaxlens.nn.parameters import parameter_shapes
from jaxlens.nn.rope import rotary_tables

SMALL = {"n_layers": 2, "d_model": 6, "n_heads": 4, "d_head": 4, "d_mlp": 10, "d_vocab": 13, "n_ctx": 16}
PLAIN = Config(**SMALL, act_fn="gelu_new")
LLAMA = Config(
    **SMALL, act_fn="silu", gated_mlp=True, normalization_type="RMS", biases=(), positional_embedding_type="rotary"
)
LATENT = LLAMA.replace(kv_lora_rank=3, rotary=Rotary(dim=2))
EXPERTS = LLAMA.replace(num_experts=4, experts_per_token=2)


# Each field: the config it is changed in, and what it is changed to.

SHAPE_CASES = {
    "n_layers": (PLAIN, {"n_layers": 3, "windows": ()}),
    "d_model": (PLAIN, {"d_model": 8}),
    "n_heads": (PLAIN, {"n_heads": 2, "n_key_value_heads": 2}),
    "d_head": (PLAIN, {"d_head": 6}),
    "d_vocab": (PLAIN, {"d_vocab": 14, "d_vocab_out": 13}),
    "n_ctx": (PLAIN, {"n_ctx": 17}),
    "n_key_value_heads": (PLAIN, {"n_key_value_heads": 2}),
    "d_mlp": (PLAIN, {"d_mlp": 11}),
    "d_vocab_out": (PLAIN, {"d_vocab_out": 3}),
    "attn_only": (PLAIN, {"attn_only": True}),
    "shared_norm": (PLAIN.replace(parallel_attn_mlp=True), {"shared_norm": True}),
    "normalization_type": (PLAIN, {"normalization_type": "LNPre"}),
    "norm_placement": (PLAIN, {"norm_placement": "both"}),
    "biases": (PLAIN, {"biases": ("b_Q", "norm")}),
    "gated_mlp": (PLAIN, {"gated_mlp": True}),
    "num_experts": (EXPERTS, {"num_experts": 5}),
    "moe_layers": (EXPERTS, {"moe_layers": (True, False)}),
    "d_expert": (EXPERTS, {"d_expert": 3}),
    "d_shared_expert": (EXPERTS, {"d_shared_expert": 3}),
    "shared_expert_gate": (EXPERTS.replace(d_shared_expert=3), {"shared_expert_gate": True}),
    "qk_norm": (LLAMA, {"qk_norm": "full"}),
    "attn_sinks": (PLAIN, {"attn_sinks": True}),
    "kv_lora_rank": (LATENT, {"kv_lora_rank": 4}),
    "q_lora_rank": (LATENT, {"q_lora_rank": 4}),
    "d_v_head": (LATENT, {"d_v_head": 5}),
    "d_embed": (PLAIN, {"d_embed": 3}),
    "post_embedding_ln": (PLAIN, {"post_embedding_ln": True}),
    "pos_offset": (PLAIN, {"pos_offset": 2}),
    "positional_embedding_type": (PLAIN, {"positional_embedding_type": "none"}),
    "tie_word_embeddings": (LLAMA, {"tie_word_embeddings": True}),
    "dtype": (PLAIN, {"dtype": "bfloat16"}),
    "output_head": (PLAIN, {"output_head": None}),
    "adapter": (PLAIN.replace(adapter=("W_Q",), adapter_rank=2), {"adapter": ("W_V", "W_in")}),
    "adapter_rank": (PLAIN.replace(adapter=("W_Q",), adapter_rank=2), {"adapter_rank": 3}),
}
LOGIT_CASES = {
    "normalization_type": (LLAMA.replace(normalization_type="RMSPre"), {"normalization_type": "LNPre"}),
    "parallel_attn_mlp": (PLAIN, {"parallel_attn_mlp": True}),
    "rmsnorm_uses_offset": (LLAMA, {"rmsnorm_uses_offset": True}),
    "eps": (PLAIN, {"eps": 0.1}),
    "act_fn": (PLAIN, {"act_fn": "relu"}),
    "experts_per_token": (EXPERTS, {"experts_per_token": 3}),
    "norm_topk_prob": (EXPERTS, {"norm_topk_prob": False}),
    "router": (EXPERTS, {"router": "sigmoid"}),
    "final_rms": (PLAIN.replace(normalization_type="LNPre"), {"final_rms": True}),
    "router_tolerance": (EXPERTS.replace(router="sparsemixer", norm_topk_prob=False), {"router_tolerance": 3.0}),
    "router_groups": (EXPERTS, {"router_groups": (2, 1)}),
    "router_scale": (EXPERTS, {"router_scale": 2.0}),
    "residual_scale": (PLAIN, {"residual_scale": 0.3}),
    "clip_qkv": (PLAIN, {"clip_qkv": 0.1}),
    "qk_norm_type": (LLAMA.replace(qk_norm="head"), {"qk_norm_type": "LN"}),
    "qk_norm_after_rotary": (LLAMA.replace(qk_norm="head"), {"qk_norm_after_rotary": True}),
    "alibi_in_bfloat16": (PLAIN.replace(positional_embedding_type="alibi"), {"alibi_in_bfloat16": True}),
    "pos_offset": (PLAIN.replace(positional_embedding_type="sinusoidal"), {"pos_offset": 2}),
    "output_logits_scale": (PLAIN, {"output_logits_scale": 3.0}),
    "windows": (PLAIN, {"windows": (None, 2)}),
    "attn_scale": (PLAIN, {"attn_scale": 0.3}),
    "scale_attn_by_inverse_layer_idx": (PLAIN, {"scale_attn_by_inverse_layer_idx": True}),
    "query_growth": (PLAIN, {"query_growth": (0.9, 2)}),
    "attn_scores_soft_cap": (PLAIN, {"attn_scores_soft_cap": 0.2}),
    "positional_embedding_type": (PLAIN, {"positional_embedding_type": "shortformer"}),
    "rotary": (LLAMA, {"rotary": (Rotary(adjacent_pairs=True), Rotary(adjacent_pairs=True))}),
    "embed_scale": (PLAIN, {"embed_scale": 3.0}),
    "output_logits_soft_cap": (PLAIN, {"output_logits_soft_cap": 0.2}),
}
SMALLEST = PLAIN.replace(d_head=6, attn_only=True, positional_embedding_type="none", tie_word_embeddings=True)
FIRST_WEIGHT_CASES = {
    "init_mode": (SMALLEST, {"init_mode": "xavier_uniform"}),
    "initializer_range": (SMALLEST, {"initializer_range": 0.5}),
}
CASES_OF_THEIR_OWN = {"attn_block", "default_prepend_bos"}


def table(cases):
    return pytest.mark.parametrize(("cfg", "change"), cases.values(), ids=cases)


def differing(cfg: Config, other: Config) -> list[str]:
    fields = [field.name for field in dataclasses.fields(Config) if field.compare]
    return [name for name in fields if getattr(cfg, name) != getattr(other, name)]


def logits(cfg: Config) -> np.ndarray:
    rng, shapes = np.random.default_rng(0), parameter_shapes(cfg).items()
    params = {name: jax.device_put(rng.normal(size=of.shape).astype(np.float32) * 0.4) for name, of in shapes}
    return np.asarray(HookedTransformer(cfg, params=params)(tokens(2, 7, d_vocab=13)))


def empty(cfg: Config) -> HookedTransformer:
    """A model that is not run."""
    params = {name: jax.device_put(np.zeros(of.shape, np.float32)) for name, of in parameter_shapes(cfg).items()}
    return HookedTransformer(cfg.to_dict(), params=params)


def test_every_field_has_a_case_that_shows_what_it_does():
    """A new field without a case fails here: a field that changes nothing must not exist."""
    cases = {*SHAPE_CASES, *LOGIT_CASES, *FIRST_WEIGHT_CASES, *CASES_OF_THEIR_OWN}
    assert cases == {field.name for field in dataclasses.fields(Config) if field.compare}


@pytest.mark.parametrize("cases", [SHAPE_CASES, LOGIT_CASES, FIRST_WEIGHT_CASES], ids=["shapes", "logits", "weights"])
def test_each_case_changes_its_own_field(cases):
    for name, (cfg, change) in cases.items():
        # the others are those that hold a default that depends on it
        assert name in differing(cfg, cfg.replace(**change))
        following = {"d_mlp", "d_expert", "n_key_value_heads", "windows", "attn_scale", "initializer_range"}
        following |= {"final_rms"}
        assert set(differing(cfg, cfg.replace(**change))) <= {name, *change, *following}


@table(SHAPE_CASES)
def test_a_field_changes_the_parameters(cfg, change):
    assert parameter_shapes(cfg) != parameter_shapes(cfg.replace(**change))


@table(LOGIT_CASES)
def test_a_field_changes_the_logits_of_equal_parameters(cfg, change):
    assert parameter_shapes(cfg) == parameter_shapes(cfg.replace(**change))
    before, after = logits(cfg), logits(cfg.replace(**change))
    assert np.isfinite(after).all()
    assert np.abs(before - after).max() > 1e-3


@table(FIRST_WEIGHT_CASES)
def test_a_field_changes_the_first_weights(cfg, change):
    before, after = (HookedTransformer(one, seed=0).params for one in (cfg, cfg.replace(**change)))
    assert all(not np.allclose(before[name], after[name]) for name in before if ".W_" in name)


def test_attn_block_bounds_the_memory_of_a_long_sequence():
    def temporary_bytes(attn_block: int) -> int:
        shapes = jax.eval_shape(lambda: HookedTransformer(PLAIN.replace(n_ctx=512, attn_block=attn_block)))
        given = jax.ShapeDtypeStruct((1, 512), jnp.int32)
        return jax.jit(lambda m, t: m(t)).lower(shapes, given).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(32) < temporary_bytes(512) / 4


def test_default_prepend_bos_puts_a_token_in_front_of_text():
    words = word_tokenizer(("<s>", "<pad>", "?", "a", "b"))
    with_bos, without = (empty(PLAIN.replace(default_prepend_bos=bos)) for bos in (True, False))
    for one in (with_bos, without):
        one.set_tokenizer(Tokenizer(words, bos_token="<s>"))
    assert with_bos.to_tokens("a b").tolist() == [[0, 3, 4]]
    assert without.to_tokens("a b").tolist() == [[3, 4]]
    assert without.to_tokens("a b", prepend_bos=True).tolist() == [[0, 3, 4]]


def test_n_ctx_is_the_longest_prompt_whatever_the_positions():
    for cfg in (PLAIN, LLAMA):
        with pytest.raises(ValueError, match="more than the model's n_ctx = 16"):
            empty(cfg)(tokens(1, 17, d_vocab=13))


# --- rotary positions


def turning(scaling=None, **rotary):
    """What a Rotary comes to in one layer: frequencies and factor, for a sequence longer than the original context."""
    cfg = LLAMA.replace(d_head=16, rotary=Rotary(**rotary, scaling=scaling))
    frequencies, factors = rotary_tables(cfg, jnp.array([40]))
    return np.append(frequencies[0], factors[0])


ONES, TWOS = (1.0,) * 8, (2.0,) * 8
SCALING_CASES = {
    "linear": (Linear(4.0), {"factor": 2.0}),
    "dynamic": (Dynamic(4.0, 8), {"factor": 2.0, "original_n_ctx": 16}),
    "llama3": (
        Llama3(4.0, 1.0, 4.0, 256),
        {"factor": 2.0, "low_freq_factor": 0.5, "high_freq_factor": 8.0, "original_n_ctx": 512},
    ),
    "yarn": (
        Yarn(4.0, 4096, 1.1, truncate=False),
        {
            "factor": 2.0, "original_n_ctx": 512, "attention_factor": 1.3, "beta_fast": 8.0, "beta_slow": 2.0,
            "truncate": True,
        },
    ),
    "long, past its context": (
        LongRope(ONES, TWOS, 8, 1.2), {"long_factor": ONES, "original_n_ctx": 64, "attention_factor": 1.1}
    ),
    "long, within": (LongRope(ONES, TWOS, 64, 1.2), {"short_factor": TWOS, "short_attention_factor": 1.1}),
}  # fmt: skip


@pytest.mark.parametrize("case", SCALING_CASES)
def test_every_field_of_a_rotary_scaling_changes_how_heads_turn(case):
    scaling, changes = SCALING_CASES[case]
    before = turning(scaling)
    for name, value in changes.items():
        assert not np.allclose(before, turning(dataclasses.replace(scaling, **{name: value})), rtol=1e-3), name


def test_every_field_of_every_rotary_scaling_has_a_case():
    changed = {(type(scaling), name) for scaling, changes in SCALING_CASES.values() for name in changes}
    kinds = typing.get_args(Scaling)
    assert changed == {(kind, field.name) for kind in kinds for field in dataclasses.fields(kind)}


def test_every_field_of_rotary_changes_how_heads_turn():
    assert not np.allclose(turning(), turning(base=500.0))
    assert turning(dim=2).shape != turning().shape
    assert not np.allclose(turning(), turning(Linear(2.0)))
    # adjacent_pairs is among the cases of `rotary` above
    assert {field.name for field in dataclasses.fields(Rotary)} == {"base", "dim", "adjacent_pairs", "scaling"}


# --- a config as a value


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_survives_json(name):
    cfg = CONFIGS[name]
    back = Config.from_dict(json.loads(json.dumps(cfg.to_dict())))
    assert back == cfg
    assert hash(back) == hash(cfg)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_first_layers_of_a_config_keep_what_is_said_of_each(name):
    cfg = CONFIGS[name]
    first = cfg.first_layers(2)
    assert first.n_layers == 2
    for per_layer in ("windows", "rotary", "moe_layers"):
        assert getattr(first, per_layer) == getattr(cfg, per_layer)[:2]
    assert cfg.first_layers(cfg.n_layers) == cfg


def test_configs_are_equal_by_value_and_can_be_keys():
    again = Config(**SMALL, act_fn="gelu_new")
    assert again == PLAIN
    assert again is not PLAIN
    assert {PLAIN: "found"}[again] == "found"
    assert PLAIN.replace(windows=[None, 3]) == PLAIN.replace(windows=(None, 3))
    assert PLAIN.replace(dtype=jnp.float32) == PLAIN
    assert PLAIN != LLAMA
    assert PLAIN != "a config"
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAIN.n_layers = 3


def test_a_single_value_stands_for_every_layer_and_defaults_follow_from_other_fields():
    cfg = LLAMA.replace(windows=3, rotary=Rotary(base=5.0), d_mlp=None, n_key_value_heads=None)
    assert cfg.windows == (3, 3)
    assert cfg.rotary == (Rotary(base=5.0), Rotary(base=5.0))
    assert (cfg.d_mlp, cfg.n_key_value_heads, cfg.d_vocab_out, cfg.rotary_dim) == (24, 4, 13, 4)
    assert (PLAIN.rotary, PLAIN.rotary_dim, PLAIN.windows) == ((), None, (None, None))
    assert PLAIN.replace(biases=("norm", "b_Q")).biases == ("b_Q", "norm")


@pytest.mark.parametrize(
    ("given", "change", "kept", "derived"),
    [
        ({"d_mlp": 24}, {"d_model": 8}, {"d_mlp": 24}, {"d_mlp": 32}),
        ({"n_key_value_heads": 4}, {"n_heads": 8}, {"n_key_value_heads": 4}, {"n_key_value_heads": 8}),
        ({"d_vocab_out": 13}, {"d_vocab": 20}, {"d_vocab_out": 13}, {"d_vocab_out": 20}),
        ({"attn_scale": 2.0}, {"d_head": 9}, {"attn_scale": 2.0}, {"attn_scale": 3.0}),
    ],
    ids=lambda fields: "-".join(fields),
)
def test_a_given_value_is_kept_and_a_derived_one_follows(given, change, kept, derived):
    sizes = {name: size for name, size in SMALL.items() if name not in given}
    explicit, implicit = Config(**sizes, **given), Config(**sizes)
    assert explicit == implicit and hash(explicit) == hash(implicit)
    assert explicit.to_dict() == implicit.to_dict()
    for cfg, expected in ((explicit, kept), (implicit, derived)):
        assert HookedTransformer(cfg, seed=3, name="tiny").cfg.model_name == "tiny"
        copies = (cfg, cfg.replace(n_ctx=17), pickle.loads(pickle.dumps(cfg)), HookedTransformer(cfg, seed=3).cfg)
        for same in copies:
            assert {name: getattr(same.replace(**change), name) for name in expected} == expected
    written = Config.from_dict(json.loads(json.dumps(implicit.to_dict())))
    assert {name: getattr(written.replace(**change), name) for name in kept} == kept


def test_a_pickled_config_is_equal_to_a_new_one_in_another_process(tmp_path):
    """The hash of a string differs between processes."""
    assert hash(PLAIN) == hash(PLAIN.replace())
    (tmp_path / "cfg").write_bytes(pickle.dumps(PLAIN))
    code = f"""
import pickle
from jaxlens import Config
cfg = pickle.loads(open({str(tmp_path / "cfg")!r}, "rb").read())
assert cfg == Config.from_dict(cfg.to_dict()) and hash(cfg) == hash(Config.from_dict(cfg.to_dict()))
"""
    for seed in ("1", "2"):
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": seed})


def test_layers_of_different_shape_are_stacks_of_their_own():
    cfg = CONFIGS["moe"]
    assert cfg.stacks == ((0, 3), (1, 2))
    assert cfg.stack_names == ("0,3", "1-2")
    assert PLAIN.stacks == ((0, 1),)
    assert PLAIN.stack_names == ("*",)
