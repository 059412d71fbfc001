"""Laws 7 and 8: a checkpoint that transformers wrote gives transformers' logits, and exporting it gives it back."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import SIZES, WINDOW, hf_logits, random_tokens, write_checkpoint

from jaxlens import HookedTransformer
from jaxlens.convert import all_families, export, load
from jaxlens.convert.opening import read_config
from jaxlens.parameters import parameter_shapes

TOLERANCE = 1e-5
"""Of the largest logit, in float32, for every family: a difference above it is a mistake to be found."""

LENGTH = 40
ROPE = {"rope_theta": 500.0}
YARN = {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
WIDE = {"head_dim": 16}  # enough frequencies for YaRN's ramp to lie among them
LONG = {
    **ROPE,
    "rope_type": "longrope",
    "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.3, 1.7],
    "long_factor": [1.5, 2.0, 4.0, 8.0],
}
LLAMA3 = {
    **ROPE,
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


def rope(**parameters):
    return {"rope_parameters": {**ROPE, **parameters}}


CASES = {
    "gpt2": [
        {},
        {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True, "activation_function": "gelu"},
        {"scale_attn_weights": False, "n_inner": 20, "activation_function": "relu", "layer_norm_epsilon": 0.1},
        {"tie_word_embeddings": False, "activation_function": "gelu_fast"},
        {"n_head": 1, "n_layer": 1, "activation_function": "gelu_pytorch_tanh"},
    ],
    "gpt_neo": [
        {},
        {"attention_types": [[["local"], 3]], "window_size": 1, "tie_word_embeddings": False},
        {"attention_types": [[["global"], 3]], "intermediate_size": 50, "activation_function": "silu"},
        {"num_layers": 2, "attention_types": [[["local", "global"], 1]], "layer_norm_epsilon": 0.1},
    ],
    "llama": [
        rope(),
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 0.1},
        {"num_key_value_heads": None, "head_dim": None, "mlp_bias": True, "hidden_act": "gelu"},
        {"num_key_value_heads": 1, "attention_bias": True, "hidden_act": "gelu_pytorch_tanh"},
        rope(rope_type="linear", factor=4.0),
        {**rope(rope_type="dynamic", factor=4.0), "max_position_embeddings": 16},
        {**rope(rope_type="dynamic", factor=2.0), "max_position_embeddings": 64},
        {"rope_parameters": LLAMA3},
        {**WIDE, "rope_parameters": YARN},
        {**WIDE, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7, "truncate": False}},
        {**WIDE, "rope_parameters": {**YARN, "attention_factor": 1.5, "beta_fast": 4.0, "beta_slow": 2.0}},
        {**WIDE, "rope_parameters": {**YARN, "factor": None, "original_max_position_embeddings": 16}},
        {"rope_parameters": LONG},
        {"rope_parameters": {**LONG, "factor": 8.0, "original_max_position_embeddings": 50}},
        {"rope_parameters": {**LONG, "attention_factor": 1.25}, "max_position_embeddings": 48},
    ],
    "mistral": [
        {},
        {"sliding_window": None, "tie_word_embeddings": True},
        {"sliding_window": 1, "num_key_value_heads": 6, "hidden_act": "relu"},
        {"sliding_window": 39, "head_dim": None, "rms_norm_eps": 0.1, "rope_parameters": LLAMA3},
    ],
    "qwen2": [
        {},
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "num_key_value_heads": None},
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "tie_word_embeddings": True,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        {
            "use_sliding_window": False,
            "sliding_window": WINDOW,
            "max_window_layers": 0,
            **WIDE,
            "rope_parameters": YARN,
        },
    ],
    "qwen3": [
        {},
        {"attention_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 0.1},
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "num_key_value_heads": 6},
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "rope_parameters": LLAMA3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ],
    "gemma2": [
        {},
        {"attention_bias": True, "tie_word_embeddings": False, "attn_logit_softcapping": None},
        {"final_logit_softcapping": None, "query_pre_attn_scalar": 3, "hidden_activation": "gelu", "rms_norm_eps": 0.1},
        {"layer_types": ["full_attention", "full_attention", "sliding_attention"], "num_key_value_heads": 6},
    ],
    "gemma3_text": [
        {},
        {"attention_bias": True, "tie_word_embeddings": False, "final_logit_softcapping": 3.0},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
            "query_pre_attn_scalar": 3,
            "rms_norm_eps": 0.1,
        },
        {"layer_types": ["full_attention", "sliding_attention"] * 2, "num_key_value_heads": 6, "sliding_window": 1},
    ],
    "gemma3": [
        {},
        {"text_config": {**SIZES["gemma3"]["text_config"], "sliding_window_pattern": 2}, "tie_word_embeddings": True},
    ],
}

PUBLISHED = {
    "gpt2": (124_439_808, {"model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}),
    "gpt-neo-125m": (125_198_592, {
        "model_type": "gpt_neo", "attention_layers": ["global", "local"] * 6, "hidden_size": 768,
        "attention_types": [[["global", "local"], 6]], "num_heads": 12, "num_layers": 12, "window_size": 256,
    }),
    "SmolLM2-135M": (134_515_008, {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "is_llama_config": True,
        "max_position_embeddings": 8192, "num_attention_heads": 9, "num_hidden_layers": 30, "vocab_size": 49152,
        "num_key_value_heads": 3, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
        "tie_word_embeddings": True, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    }),
    "Llama-3.2-1B": (1_235_814_400, {
        "model_type": "llama", "head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192,
        "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 131072, "rope_theta": 500000.0, "tie_word_embeddings": True,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3",
            "original_max_position_embeddings": 8192,
        },
    }),
    "Mistral-7B-v0.1": (7_241_732_096, {
        "model_type": "mistral", "max_position_embeddings": 32768, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
        "sliding_window": 4096, "tie_word_embeddings": False,
    }),
    "Qwen2.5-0.5B": (494_032_768, {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "max_window_layers": 24,
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rope_theta": 1000000.0,
        "sliding_window": 32768, "tie_word_embeddings": True, "use_mrope": False, "use_sliding_window": False,
    }),
    "Qwen3-0.6B": (596_049_920, {
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "max_window_layers": 28,
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rope_theta": 1000000,
        "head_dim": 128, "tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": None,
    }),
    "gemma-2-9b": (9_241_705_984, {
        "model_type": "gemma2", "hidden_act": "gelu_pytorch_tanh", "hidden_size": 3584,
        "cache_implementation": "hybrid", "intermediate_size": 14336, "num_attention_heads": 16,
        "num_hidden_layers": 42, "num_key_value_heads": 8, "sliding_window_size": 4096, "sliding_window": 4096,
    }),
    "gemma-3-1b-it": (999_885_952, {
        "model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, "eos_token_id": [1, 106],
        "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "vocab_size": 262144,
        "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
        "sliding_window_pattern": 6,
    }),
}  # fmt: skip
"""Published config.json files, as far as they matter, and the parameters that the models are published with."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_have_their_published_size(name):
    parameters, fields = PUBLISHED[name]
    cfg = read_config({"torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": True, **fields})[1]
    assert sum(math.prod(shape.shape) for shape in parameter_shapes(cfg).values()) == parameters


def logits(folder, tokens, **options):
    loaded = load(folder, **options)
    return np.asarray(HookedTransformer(loaded.cfg, params=loaded.params, source=loaded.source)(tokens))


def assert_equal_logits(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


def tensors(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def assert_same_tensors(ours, theirs):
    assert sorted(ours) == sorted(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        assert ours[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [pytest.param(kind, case, id=f"{kind}-{i}") for kind in CASES for i, case in enumerate(CASES[kind])],
)
def test_logits_and_round_trip(tmp_path, model_type, fields):
    for seed in range(2):
        theirs = write_checkpoint(tmp_path / f"theirs-{seed}", model_type, seed, **fields)
        tokens = random_tokens(seed, LENGTH)
        expected = hf_logits(theirs, tokens)
        loaded = load(theirs, n_ctx=64 if fields.get("max_position_embeddings", 64) < LENGTH else None)
        model = HookedTransformer(loaded.cfg, params=loaded.params, source=loaded.source)
        assert_equal_logits(np.asarray(model(tokens)), expected)

    ours = export(tmp_path / "ours", load(theirs).cfg, model.params, model.source)
    wanted = {
        name: value for name, value in tensors(theirs).items() if "vision" not in name and "multi_modal" not in name
    }
    assert_same_tensors(tensors(ours), {spelled_by_us(name): value for name, value in wanted.items()})
    assert np.array_equal(hf_logits(ours, tokens), expected)


def spelled_by_us(name):
    return name.replace("language_model.model.", "model.").replace("model.language_model.", "model.")


def test_every_family_has_cases():
    assert {kind for kind in all_families() if kind != "jaxlens"} == set(CASES)
    assert all(len(cases) >= 4 or kind == "gemma3" for kind, cases in CASES.items())


def test_short_sequences_do_not_stretch(tmp_path):
    """Below the original context, dynamic and longrope turn by their short frequencies."""
    for i, parameters in enumerate((LONG, {**ROPE, "rope_type": "dynamic", "factor": 4.0})):
        folder = write_checkpoint(tmp_path / str(i), "llama", rope_parameters=parameters)
        tokens = random_tokens(0, 12)
        assert_equal_logits(logits(folder, tokens), hf_logits(folder, tokens))


def edit_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    config = {**config, **fields}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    return config


def rename_tensors(folder, rename, **more):
    renamed = {rename(name): value for name, value in tensors(folder).items()}
    save_file({**renamed, **more}, folder / "model.safetensors")


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"type": "linear", "factor": 4.0},
        {"rope_type": "llama3", **{name: value for name, value in LLAMA3.items() if name not in ROPE}},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "finetuned": True},
    ],
    ids=str,
)
def test_rope_fields_of_older_files(tmp_path, scaling):
    """`rope_theta` and `rope_scaling` side by side mean what `rope_parameters` means now."""
    folder = write_checkpoint(tmp_path, "llama")
    edit_config(folder, rope_parameters=..., rope_theta=500.0, rope_scaling=scaling, torch_dtype="float32", dtype=...)
    tokens = random_tokens(0, LENGTH)
    assert_equal_logits(logits(folder, tokens), hf_logits(folder, tokens))


def test_rope_fields_of_older_gemma3_files(tmp_path):
    folder = write_checkpoint(tmp_path, "gemma3_text")
    scaling = {"rope_type": "linear", "factor": 8.0}
    older = {"rope_theta": 1000.0, "rope_local_base_freq": 100.0, "rope_scaling": scaling, "sliding_window_pattern": 2}
    edit_config(folder, rope_parameters=..., layer_types=..., _sliding_window_pattern=..., **older)
    tokens = random_tokens(0, LENGTH)
    loaded = load(folder)
    assert [turn.base for turn in loaded.cfg.rotary] == [100.0, 1000.0, 100.0, 1000.0]
    assert_equal_logits(logits(folder, tokens), hf_logits(folder, tokens))


def test_gpt2_as_openai_published_it(tmp_path):
    """Without the prefix "transformer.", with causal masks among the tensors, with the fields of 2019."""
    folder = write_checkpoint(tmp_path / "theirs", "gpt2")
    expected = hf_logits(folder, random_tokens(0))
    masks = {f"h.{layer}.attn.bias": np.tril(np.ones((1, 1, 64, 64), np.float32)) for layer in range(3)}
    original = tensors(folder)
    rename_tensors(folder, lambda name: name.removeprefix("transformer."), **masks)
    edit_config(folder, n_ctx=64, task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}})
    loaded = load(folder)
    assert_equal_logits(logits(folder, random_tokens(0)), expected)
    exported = export(tmp_path / "ours", loaded.cfg, loaded.params, loaded.source)
    assert_same_tensors(tensors(exported), original)


@pytest.mark.parametrize("layout", ["model.language_model.", "language_model.model."])
def test_gemma3_text_inside_a_multimodal_checkpoint(tmp_path, layout):
    folder = write_checkpoint(tmp_path / "theirs", "gemma3")
    expected = hf_logits(folder, random_tokens(0))
    images = {"multi_modal_projector": "x", "vision_tower": "x"} if layout.startswith("language") else {}

    def spell(name):
        if any(part in name for part in ("multi_modal_projector", "vision_tower")):
            return name.removeprefix("model.") if images else "model." + name.removeprefix("model.")
        return layout + name.removeprefix("model.language_model.").removeprefix("language_model.model.")

    rename_tensors(folder, spell)
    assert_equal_logits(logits(folder, random_tokens(0)), expected)


def test_half_precision_is_kept_bit_for_bit(tmp_path):
    for dtype in ("bfloat16", "float16"):
        theirs = write_checkpoint(tmp_path / dtype, "gemma2", dtype=dtype)
        loaded = load(theirs, dtype=None)
        assert loaded.cfg.dtype == dtype
        assert {str(value.dtype) for value in loaded.params.values()} == {dtype}
        ours = export(tmp_path / f"{dtype}-ours", loaded.cfg, loaded.params, loaded.source)
        assert_same_tensors(tensors(ours), tensors(theirs))
        assert json.loads((ours / "config.json").read_text())["dtype"] == dtype
        assert_equal_logits(logits(theirs, random_tokens(0)), hf_logits(theirs, random_tokens(0)))


def test_sharded_folders(tmp_path):
    theirs = write_checkpoint(tmp_path / "theirs", "llama", shard="20KB")
    assert len(list(theirs.glob("*.safetensors"))) > 2
    loaded = load(theirs)
    ours = export(tmp_path / "ours", loaded.cfg, loaded.params, loaded.source, shard_bytes=20_000)
    assert len(list(ours.glob("model-*-of-*.safetensors"))) > 2
    assert_same_tensors(tensors(ours), tensors(theirs))
    tokens = random_tokens(0)
    assert np.array_equal(hf_logits(ours, tokens), hf_logits(theirs, tokens))
    assert_equal_logits(logits(ours, tokens), hf_logits(theirs, tokens))


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neo", "qwen2", "gemma2", "gemma3_text"])
def test_the_first_layers_are_a_model_of_their_own(tmp_path, model_type):
    """Its logits are those of the same layers of the whole model, and it can be exported."""
    theirs = write_checkpoint(tmp_path / "theirs", model_type)
    whole, cut = load(theirs), load(theirs, first_n_layers=2)
    assert cut.cfg.n_layers == 2
    for name, value in cut.params.items():
        kept = whole.params[name][:2] if name.startswith("blocks") else whole.params[name]
        assert np.array_equal(value, kept), name
    exported = export(tmp_path / "ours", cut.cfg, cut.params, cut.source)
    tokens = random_tokens(0)
    assert_equal_logits(logits(theirs, tokens, first_n_layers=2), hf_logits(exported, tokens))


def test_a_shorter_context_has_fewer_learned_positions(tmp_path):
    theirs = write_checkpoint(tmp_path / "theirs", "gpt2")
    whole, short = load(theirs), load(theirs, n_ctx=50)
    assert np.array_equal(short.params["pos_embed.W_pos"], whole.params["pos_embed.W_pos"][:50])
    exported = export(tmp_path / "ours", short.cfg, short.params, short.source)
    assert json.loads((exported / "config.json").read_text())["n_positions"] == 50
    assert np.array_equal(hf_logits(exported, random_tokens(0)), hf_logits(theirs, random_tokens(0)))
