"""GGUF files of every architecture, written like llama.cpp's converter, equal the original checkpoints."""

import dataclasses
import math
import tracemalloc

import gguf
import numpy as np
import pytest
from families.common import LLAMA3, LONGROPE, WINDOW, YARN
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file
from support.gguf_writer import export, gguf_tensors, write_gguf
from support.tiny import hf_logits, random_tokens, write_checkpoint
from test_qwen import SIZES as QWEN
from test_qwen import as_qwen

from jaxlens import CheckpointError, HookedTransformer
from jaxlens.checkpoints import export as export_checkpoint
from jaxlens.checkpoints import load, open_checkpoint
from jaxlens.checkpoints.gguf import config_llama
from jaxlens.checkpoints.gguf import tensors as tensor_reader
from jaxlens.checkpoints.gguf.architectures import ARCHITECTURES
from jaxlens.checkpoints.gguf.file import GGUFFile, read_header
from jaxlens.checkpoints.gguf.metadata import Metadata
from jaxlens.checkpoints.gguf.tensors import TYPES
from jaxlens.checkpoints.safetensors_reader import read_json
from jaxlens.cli.commands.families import table

ROPE = {"rope_theta": 1e4, "rope_type": "default"}
SCALED = {"rope_theta": 500.0, "rope_type": "linear", "factor": 4.0}
LOCAL, GLOBAL = "sliding_attention", "full_attention"
EVERY_FOURTH = [LOCAL, LOCAL, LOCAL, GLOBAL]
PLAIN_HEADS = {"hidden_size": 48, "head_dim": None}
HALF = {**ROPE, "partial_rotary_factor": 0.5}
GPT_NEOX = {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.4}}
BIASES = {"attention_bias": True, "mlp_bias": True}
MISTRAL3 = {**YARN, "llama_4_scaling_beta": 0.4, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 16.0}
DEEPSEEK_YARN = {**YARN, "mscale": 0.7, "mscale_all_dim": 0.7}
LATENT = {
    "attention.head_count_kv": 1, "attention.key_length": 28, "attention.value_length": 20, "rope.dimension_count": 8,
    "attention.key_length_mla": 14, "attention.value_length_mla": 10, "attention.kv_lora_rank": 20,
    "attention.q_lora_rank": 12, "leading_dense_block_count": 1, "expert_feed_forward_length": 12,
}  # fmt: skip
WITHOUT_QUERY_RANK = {
    **LATENT, "attention.q_lora_rank": None, "leading_dense_block_count": 0, "expert_shared_count": 2,
}  # fmt: skip
DEEPSEEK_SCALED = {**LATENT, "expert_shared_count": 2, "rope.scaling.yarn_log_multiplier": 0.07}
GROUPS = {"topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 2}
GROUP_KEYS = {"expert_group_count": 3, "expert_group_used_count": 2}
MOE_KEYS = {"expert_feed_forward_length": 20}
GRANITE_KEYS = {"attention.scale": 0.4, "embedding_scale": 1.7, "residual_scale": 0.6, "logit_scale": 3.0}
GRANITE = {
    "attention_multiplier": 0.4, "embedding_multiplier": 1.7, "residual_multiplier": 0.6, "logits_scaling": 3.0,
}  # fmt: skip
GEMMA = {"query_pre_attn_scalar": 8}
GEMMA3 = {
    GLOBAL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
    LOCAL: {"rope_type": "default", "rope_theta": 1e4},
}  # fmt: skip
WINDOWS = {"sliding_window": WINDOW, "num_hidden_layers": 4, "layer_types": EVERY_FOURTH}
CASES = {  # name: architecture, model_type, fields of config.json, keys of the file
    "llama": ("llama", "llama", {"rope_parameters": LLAMA3}, {}),
    "llama with biases": ("llama", "llama", {**BIASES, "tie_word_embeddings": True, "rope_parameters": SCALED}, {}),
    "llama yarn": ("llama", "llama", {"head_dim": 16, "rope_parameters": {**YARN, "beta_slow": 2.0}}, {}),
    "llama longrope": (
        "llama", "llama", {"rope_parameters": {**LONGROPE, "attention_factor": 1.25, "rope_theta": 1e4}},
        {"rope.scaling.type": "longrope", "rope.scaling.attn_factor": 1.25,
         "rope.scaling.original_context_length": 16},
    ),
    "mistral": ("llama", "mistral", {"sliding_window": WINDOW}, {}),
    "mixtral": ("llama", "mixtral", {}, {}),
    "ministral 3": (
        "mistral3", "ministral3", {"rope_parameters": MISTRAL3},
        {"rope.scaling.yarn_log_multiplier": 1.0, "attention.temperature_scale": 0.4},
    ),
    "mistral small 3.1": ("mistral3", "mistral", {"sliding_window": None}, {}),
    "baichuan": ("baichuan", "llama", PLAIN_HEADS, {"tensor_data_layout": "Meta AI original pth"}),
    "xverse": ("xverse", "llama", PLAIN_HEADS, {"tensor_data_layout": "Meta AI original pth"}),
    "internlm 2": ("internlm2", "llama", PLAIN_HEADS, {}),
    "exaone": ("exaone", "llama", {**PLAIN_HEADS, "rope_parameters": SCALED}, {}),
    "arcee": ("arcee", "arcee", BIASES, {}),
    "smollm 3": ("smollm3", "smollm3", {"num_hidden_layers": 5, "no_rope_layer_interval": 4}, {}),
    "apertus": ("apertus", "apertus", {"rope_parameters": LLAMA3}, {}),
    "seed-oss": ("seed_oss", "seed_oss", {}, {}),
    "ernie 4.5": ("ernie4_5", "ernie4_5", {"use_bias": True}, {}),
    "granite": ("granite", "granite", GRANITE, GRANITE_KEYS),
    "minicpm": (
        "minicpm", "granite", {**GRANITE, "attention_multiplier": 1 / math.sqrt(8)},
        {**GRANITE_KEYS, "attention.scale": None},
    ),
    "granite moe": ("granitemoe", "granitemoe", GRANITE, GRANITE_KEYS),
    "hunyuan": ("hunyuan-dense", "hunyuan_v1_dense", {"rope_parameters": ROPE}, {}),
    "qwen 2": ("qwen2", "qwen2", {"tie_word_embeddings": True}, {}),
    "qwen 2 vl": ("qwen2vl", "qwen2", {}, {"rope.dimension_sections": [2, 1, 1, 0]}),
    "qwen 2 moe": (
        "qwen2moe", "qwen2_moe", {"norm_topk_prob": False}, {**MOE_KEYS, "expert_shared_feed_forward_length": 28},
    ),
    "qwen 3": ("qwen3", "qwen3", {}, {}),
    "qwen 3 vl": ("qwen3vl", "qwen3", {}, {"n_deepstack_layers": 3, "rope.dimension_sections": [2, 1, 1, 0]}),
    "qwen 3 moe": ("qwen3moe", "qwen3_moe", {"norm_topk_prob": True}, MOE_KEYS),
    "qwen 3 vl moe": ("qwen3vlmoe", "qwen3_moe", {"norm_topk_prob": True}, {**MOE_KEYS, "n_deepstack_layers": 3}),
    "gemma": ("gemma", "gemma", {}, {}),
    "gemma 2": (
        "gemma2", "gemma2", {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma 3": (
        "gemma3", "gemma3_text",
        {**GEMMA, "num_hidden_layers": 7, "rope_parameters": GEMMA3, "sliding_window_pattern": 6},
        {"rope.freq_base_swa": None},
    ),
    "olmo": ("olmo", "olmo", {"clip_qkv": 0.5}, {"attention.clamp_kqv": 0.5}),
    "olmo 2": ("olmo2", "olmo2", {}, {}),
    "olmo 3": (
        "olmo2", "olmo3", {"layer_types": [GLOBAL, LOCAL, LOCAL], "rope_parameters": {GLOBAL: SCALED, LOCAL: ROPE}},
        {"attention.sliding_window_pattern": [False, True, True]},
    ),
    "olmoe": ("olmoe", "olmoe", {"norm_topk_prob": False}, {}),
    "exaone 4": ("exaone4", "exaone4", WINDOWS, {}),
    "exaone 4 without windows": (
        "exaone4", "exaone4", {"sliding_window": None, "layer_types": [GLOBAL] * 3}, {"attention.sliding_window": None},
    ),
    "phi 2": ("phi2", "phi", {}, {}),
    "phi 3": ("phi3", "phi3", {"sliding_window": WINDOW}, {}),
    "phi 3 long": (
        "phi3", "phi3", {
            "original_max_position_embeddings": 16, "sliding_window": None,
            "rope_parameters": {**LONGROPE, "partial_rotary_factor": 1.0, "attention_factor": 1.25},
        },
        {"rope.scaling.original_context_length": 16, "rope.scaling.attn_factor": 1.25, "attention.sliding_window": 0},
    ),
    "phi 3.5 moe": ("phimoe", "phimoe", {}, {}),
    "glm 4": ("chatglm", "glm", {"rope_parameters": HALF}, {}),
    "glm 4 0414": ("glm4", "glm4", {"rope_parameters": HALF}, {}),
    "command r": ("command-r", "cohere", {"use_qk_norm": True, "logit_scale": 0.3}, {"logit_scale": 0.3}),
    "command r7b": ("cohere2", "cohere2", {**WINDOWS, "logit_scale": 0.3}, {"logit_scale": 0.3}),
    "stablelm": ("stablelm", "stablelm", {"qk_layernorm": True, "use_parallel_residual": True}, {}),
    "stablelm with two norms": (
        "stablelm", "stablelm", {"use_qkv_bias": True}, {"use_parallel_residual": True},
    ),
    "orion": ("orion", "stablelm", {"rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}}, {}),
    "nemotron": ("nemotron", "nemotron", BIASES, {}),
    "starcoder 2": ("starcoder2", "starcoder2", {"sliding_window": WINDOW}, {}),
    "gpt-oss": ("gpt-oss", "gpt_oss", {"attention_bias": True}, {"expert_feed_forward_length": 44}),
    "deepseek v2": ("deepseek2", "deepseek_v2", {"rope_parameters": DEEPSEEK_YARN}, DEEPSEEK_SCALED),
    "deepseek v2 lite": (
        "deepseek2", "deepseek_v2", {"q_lora_rank": None, "first_k_dense_replace": 0, **GROUPS},
        {**WITHOUT_QUERY_RANK, **GROUP_KEYS},
    ),
    "deepseek v3": (
        "deepseek2", "deepseek_v3", {"rope_parameters": DEEPSEEK_YARN},
        {**LATENT, **GROUP_KEYS, "expert_gating_func": 2, "expert_weights_scale": 2.5, "expert_weights_norm": True,
         "rope.scaling.yarn_log_multiplier": 0.07, "expert_shared_count": 1},
    ),
    "gpt-2": ("gpt2", "gpt2", {}, {}),
    "gpt-j": ("gptj", "gptj", {}, {"rope.dimension_count": 4}),
    "gpt-neox": ("gptneox", "gpt_neox", GPT_NEOX, {"use_parallel_residual": True}),
    "starcoder": ("starcoder", "gpt_bigcode", {}, {"attention.head_count_kv": 1}),
    "falcon 7b": ("falcon", "falcon", {"multi_query": True, "parallel_attn": True, "bias": False}, {
        "attention.head_count_kv": 1, "tensor_data_layout": "jploski"}),
    "falcon 40b": ("falcon", "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": False}, {
        "tensor_data_layout": "jploski"}),
    "falcon 11b": ("falcon", "falcon", {
        "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "bias": True}, {}),
    "bloom": ("bloom", "bloom", {"seq_length": 64}, {}),
    "mpt": ("mpt", "mpt", {}, {"attention.max_alibi_bias": 8.0}),
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The checkpoint and the GGUF file of a case, written once."""
    made = {}

    def write(name):
        if name not in made:
            architecture, model_type, fields, keys = CASES[name]
            folder = tmp_path_factory.mktemp("theirs") / model_type
            write_checkpoint(folder, model_type, **fields)
            made[name] = folder, export(folder.with_suffix(".gguf"), folder, architecture, keys)
        return made[name]

    return write


def logits(loaded, tokens):
    return np.asarray(HookedTransformer(loaded.cfg, params=loaded.params)(tokens))


NOTES = {"model_name", "generation_config"}
"""Fields of a Config that a GGUF file does not have: the tokens that end a text are those of its tokenizer."""


@pytest.mark.parametrize("name", CASES)
def test_a_file_equals_the_original_checkpoint(name, written):
    """The Configs are equal, and so are the tensors, bit for bit (1 + w for norms to which the converter adds 1)."""
    folder, path = written(name)
    file, original = open_checkpoint(path), open_checkpoint(folder)
    changed = {
        field.name: (getattr(original.cfg, field.name), getattr(file.cfg, field.name))
        for field in dataclasses.fields(file.cfg)
        if getattr(original.cfg, field.name) != getattr(file.cfg, field.name) and field.name not in NOTES
    }
    same = {"rotary"} if name == "llama" or name == "apertus" else set()  # llama3's scaling; see the test of logits
    assert changed.keys() == same, changed
    tensors = load_file(folder / "model.safetensors")
    extra = {n for n in tensors if n.endswith("rotary_emb.inv_freq")}
    assert set(file.tensors.names()) == tensors.keys() - extra
    plus_one = CASES[name][0] in ("gemma", "gemma2", "gemma3", "nemotron")
    for tensor in file.tensors.names():
        ours, theirs = file.tensors.read(tensor), tensors[tensor]
        if plus_one and tensor.endswith("norm.weight"):
            ours, theirs = ours + np.float32(1), theirs + np.float32(1)
        assert file.tensors.shape(tensor) == theirs.shape == ours.shape, tensor
        assert np.array_equal(ours, theirs) and ours.flags.writeable and ours.dtype == np.float32, tensor


def test_every_architecture_has_a_case():
    assert ARCHITECTURES.keys() <= set(gguf.MODEL_ARCH_NAMES.values())
    types = {(case[0], case[1]) for case in CASES.values()} | {("qwen", "qwen")}
    assert types == {(name, kind) for name, entry in ARCHITECTURES.items() for kind in entry.model_types}


def test_qwen_1(tmp_path):
    """transformers has no class for it; see test_qwen.py."""
    reference = write_checkpoint(tmp_path / "qwen2", "qwen2", num_key_value_heads=6, **QWEN)
    folder = as_qwen(reference, tmp_path / "qwen", max_position_embeddings=64)
    path = export(tmp_path / "qwen.gguf", folder, "qwen", {"attention.layer_norm_rms_epsilon": 1e-6})
    file, tensors = open_checkpoint(path), load_file(folder / "model.safetensors")
    assert file.cfg.replace(model_name="qwen") == open_checkpoint(folder).cfg
    assert {name: file.tensors.read(name).tolist() for name in file.tensors.names()} == {
        name: value.tolist() for name, value in tensors.items()
    }
    contexts = [config_llama.qwen(qwen_metadata(layers, 32768))["seq_length"] for layers in (32, 40, 80)]
    assert contexts == [8192, 2048, 32768]


def qwen_metadata(layers, context):
    keys = {"block_count": layers, "context_length": context, "embedding_length": 36, "feed_forward_length": 88,
            "attention.head_count": 6, "attention.layer_norm_rms_epsilon": 1e-6}  # fmt: skip
    return Metadata("qwen", {f"qwen.{key}": value for key, value in keys.items()}, dict.fromkeys(range(layers)), None)


LOGITS = ("llama", "apertus", "mixtral", "gemma 3", "gpt-oss", "deepseek v3", "falcon 40b", "phi 3 long", "bloom")


@pytest.mark.parametrize("name", LOGITS)
def test_logits_equal_those_of_transformers(name, written):
    folder, path = written(name)
    tokens, loaded = random_tokens(0), load(path)
    expected = hf_logits(folder, tokens)
    assert np.abs(logits(loaded, tokens) - expected).max() <= 1e-5 * np.abs(expected).max()


# ---- other spellings ------------------------------------------------------------------------------------------------


def respelled(path, written_case, change, keys=()):
    """A file like that of a case, with `change` applied to its tensors and `keys` to its metadata."""
    folder, original = written_case
    file = GGUFFile(original)
    values = {key: value for key, value in file.metadata.items() if not key.startswith("general.")} | dict(keys)
    architecture = file.metadata["general.architecture"]
    tensors = gguf_tensors(folder, architecture)
    change(tensors)
    return file, GGUFFile(write_gguf(path, architecture, values, tensors))


def assert_same(file, other):
    assert set(file.names()) == set(other.names()) and file.config == other.config
    for name in file.names():
        assert np.array_equal(file.read(name), other.read(name)) and other.shape(name) == file.shape(name), name


def fuse_queries_keys_values(tensors):
    for layer in range(3):
        for suffix in ("weight", "bias"):
            parts = [tensors.pop(f"blk.{layer}.attn_{letter}.{suffix}", None) for letter in "qkv"]
            if parts[0] is not None:
                tensors[f"blk.{layer}.attn_qkv.{suffix}"] = np.concatenate(parts)


def one_tensor_per_expert(tensors):
    for name in [name for name in tensors if "_exps" in name]:
        for i, value in enumerate(tensors.pop(name)):
            tensors[name.replace("_exps", f".{i}")] = value


def fuse_gates(tensors):
    for layer in range(3):
        gate, up = (tensors.pop(f"blk.{layer}.ffn_{kind}_exps.weight") for kind in ("gate", "up"))
        tensors[f"blk.{layer}.ffn_gate_up_exps.weight"] = np.concatenate([gate, up], axis=1)


def without_axis_of_one(tensors):
    for name in [name for name in tensors if "gate_inp_shexp" in name]:
        tensors[name] = tensors[name].reshape(-1)


@pytest.mark.parametrize(("name", "change"), [
    ("llama", fuse_queries_keys_values), ("glm 4", fuse_queries_keys_values), ("phi 2", fuse_queries_keys_values),
    ("mixtral", one_tensor_per_expert), ("granite moe", fuse_gates), ("qwen 3 moe", fuse_gates),
    ("qwen 2 moe", without_axis_of_one),
])  # fmt: skip
def test_older_and_newer_spellings(name, change, written, tmp_path):
    assert_same(*respelled(tmp_path / "other.gguf", written(name), change))


def test_older_files_of_deepseek_have_one_tensor_of_keys_and_values(written, tmp_path):
    folder, path = written("deepseek v2")
    original = load_file(folder / "model.safetensors")

    def joined(tensors):
        for layer in range(3):
            if tensors.pop(f"blk.{layer}.attn_v_b.weight", None) is not None:
                del tensors[f"blk.{layer}.attn_k_b.weight"]
            name = f"model.layers.{layer}.self_attn.kv_b_proj.weight"
            tensors[f"blk.{layer}.attn_kv_b.weight"] = original[name]

    keys = {f"deepseek2.attention.{key}": value for key, value in {
        "head_count_kv": 6, "key_length": 14, "value_length": 10, "key_length_mla": None, "value_length_mla": None,
    }.items()}  # fmt: skip
    assert_same(*respelled(tmp_path / "other.gguf", (folder, path), joined, keys))


def test_sizes_that_older_files_do_not_contain(written, tmp_path):
    keys = dict.fromkeys(("qwen2moe.expert_feed_forward_length", "qwen2moe.expert_shared_feed_forward_length",
                          "qwen2moe.attention.key_length", "qwen2moe.attention.value_length"))  # fmt: skip
    assert_same(*respelled(tmp_path / "other.gguf", written("qwen 2 moe"), lambda tensors: None, keys))


def test_layers_with_windows_may_be_listed_or_counted(written, tmp_path):
    for pattern in ([True, True, True, False], 4):
        keys = {"cohere2.attention.sliding_window_pattern": pattern}
        assert_same(*respelled(tmp_path / "other.gguf", written("command r7b"), lambda tensors: None, keys))
    keys = {"cohere2.attention.sliding_window_pattern": [True, False]}
    with pytest.raises(CheckpointError, match=r"pattern is \[True, False\]; expected one boolean for each of 4 layers"):
        respelled(tmp_path / "other.gguf", written("command r7b"), lambda tensors: None, keys)


@pytest.mark.parametrize(("name", "keys", "message"), [
    ("baichuan", {"baichuan.block_count": 40}, "block_count is 40, but the file has only"),
    ("mpt", {"mpt.attention.max_alibi_bias": 0.0}, r"mpt\.attention\.max_alibi_bias is 0\.0; expected 8\.0"),
    ("apertus", {"xielu.beta": [0.5]}, r"xielu\.beta is \[0\.5\]; expected one number for each of 3 layers"),
    ("gemma 2", {"gemma2.rope.freq_base_swa": 5.0}, r"gemma2\.rope\.freq_base_swa is 5\.0; expected 10000\.0"),
    ("starcoder", {"starcoder.attention.head_count_kv": 2}, r"head_count_kv is 2; expected 1"),
    ("deepseek v2", {"deepseek2.attention.head_count_kv": 2}, r"head_count_kv is 2; expected 1 or 6"),
    ("llama", {"llama.rope.scaling.attn_factor": 2.0}, r"rope\.scaling\.attn_factor is 2\.0; expected 1\.0"),
])  # fmt: skip
def test_unsupported_metadata(name, keys, message, written, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        respelled(tmp_path / "other.gguf", written(name), lambda tensors: None, keys)


def test_baichuan_13b_has_other_positions(written):
    file = GGUFFile(written("baichuan")[1])._file
    file.values = {**file.values, "baichuan.block_count": 40}
    file.shapes = dict.fromkeys(range(100))
    with pytest.raises(CheckpointError, match="Baichuan 13B has ALiBi positions, which jaxlens supports in BLOOM, MPT"):
        config_llama.baichuan(file)


@pytest.mark.parametrize(("name", "tensor", "shape", "message"), [
    ("bloom", "blk.0.attn_qkv.bias", (91,), "has 91 rows; expected queries, keys and values of 6 heads"),
    ("falcon 40b", "blk.0.attn_qkv.weight", (101, 60), "has 101 rows; expected 6 queries and 2 keys and values of"),
])  # fmt: skip
def test_tensors_of_the_wrong_size(name, tensor, shape, message, written, tmp_path):
    def resize(tensors):
        tensors[tensor] = np.zeros(shape, np.float32)

    _, file = respelled(tmp_path / "other.gguf", written(name), resize)
    (source,) = [theirs for theirs in file.names() if "query_key_value" in theirs and ".0." in theirs
                 and theirs.endswith(tensor[-4:])]  # fmt: skip
    with pytest.raises(CheckpointError, match=message):
        file.read(source)


def test_fused_rows_of_the_wrong_number(written, tmp_path):
    def fuse_too_many(tensors):
        fuse_queries_keys_values(tensors)
        tensors["blk.0.attn_qkv.weight"] = np.zeros((81, 36), np.float32)

    _, file = respelled(tmp_path / "other.gguf", written("llama"), fuse_too_many)
    for call in (file.read, file.shape):
        with pytest.raises(CheckpointError, match=r"blk\.0\.attn_qkv\.weight has 81 rows; expected 48 \+ 16 \+ 16"):
            call("model.layers.0.self_attn.q_proj.weight")


# ---- quantized tensors ----------------------------------------------------------------------------------------------


def random_blocks(kind, rows=3, blocks=2):
    """Random blocks whose scales, which are float16 or E8M0, are neither huge nor NaN."""
    random = np.random.default_rng(0)
    size = gguf.GGML_QUANT_SIZES[kind][1]
    data = random.integers(0, 256, (rows, blocks, size), np.uint8)
    one = random.uniform(0.001, 0.01, (rows, blocks, 2)).astype(np.float16).view(np.uint8).reshape(rows, blocks, 4)
    if kind == Kind.MXFP4:
        data[..., 0] = 120
    elif kind == Kind.NVFP4:
        data[..., :4] = 0x38
    elif kind == Kind.IQ1_M:
        data[..., -7::2] = data[..., -7::2] & 0x0F | 0x10  # the scale is in the upper four bits of four bytes
    elif kind in (Kind.Q6_K, Kind.Q3_K, Kind.TQ1_0, Kind.TQ2_0):
        data[..., -2:] = one[..., :2]
    elif kind == Kind.Q2_K:
        data[..., -4:] = one
    else:
        data[..., : 4 if kind in (Kind.Q4_1, Kind.Q5_1, Kind.Q4_K, Kind.Q5_K) else 2] = one[
            ..., : 4 if kind in (Kind.Q4_1, Kind.Q5_1, Kind.Q4_K, Kind.Q5_K) else 2]
    return data.reshape(rows, -1)


def write_blocks(path, data, kind):
    """Writes a file with one tensor, and returns the tensor's entry in the header."""
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_tensor("some.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_header(path).tensors["some.weight"]


@pytest.mark.parametrize("name", [name for name in TYPES if name not in ("F64", "F32", "F16", "BF16")])
def test_every_quantized_type(name, tmp_path, monkeypatch):
    """Values are those of the package gguf, whether they are read in one piece or in several."""
    kind = Kind[name]
    data = random_blocks(kind)
    info = write_blocks(tmp_path / "model.gguf", data, kind)
    expected = gguf.dequantize(data, kind)
    for chunk in (2**20, 1, 300):
        monkeypatch.setattr(tensor_reader, "CHUNK", chunk)
        value = tensor_reader.read(tmp_path / "model.gguf", "some.weight", info)
        assert np.array_equal(value, expected) and np.isfinite(value).all() and value.std() > 0
        assert np.array_equal(tensor_reader.read(tmp_path / "model.gguf", "some.weight", info, 1), expected[1])


def test_values_computed_here():
    """A few values of the blocks above, from llama.cpp's definitions (ggml-common.h, ggml-quants.c)."""
    half = lambda row, start: np.float32(row[start : start + 2].view(np.float16)[0])  # noqa: E731
    row = random_blocks(Kind.Q4_K)[0]  # d, dmin, 12 bytes of 6-bit scales, 128 bytes of 4 bits
    expected = half(row, 0) * (row[4] & 63) * (row[16] & 15) - half(row, 2) * (row[8] & 63)
    assert gguf.dequantize(row, Kind.Q4_K)[0] == pytest.approx(expected, rel=1e-6)
    row = random_blocks(Kind.Q5_0)[0]  # d, 4 bytes of fifth bits, 16 bytes of 4 bits
    assert gguf.dequantize(row, Kind.Q5_0)[0] == half(row, 0) * (int(row[6] & 15 | (row[2] & 1) << 4) - 16)
    row = random_blocks(Kind.Q6_K)[0]  # 128 bytes of 4 bits, 64 of 2 bits, 16 scales, d
    bits = int(row[0] & 15 | (row[128] & 3) << 4) - 32
    assert gguf.dequantize(row, Kind.Q6_K)[0] == pytest.approx(half(row, 208) * row[192:193].view(np.int8)[0] * bits)
    row = random_blocks(Kind.MXFP4)[0]  # an exponent, 16 bytes of e2m1 pairs
    magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert abs(gguf.dequantize(row, Kind.MXFP4)[0]) == magnitudes[row[1] & 7] * 2.0 ** (120 - 127)


@pytest.mark.parametrize(("name", "kind"), [("llama", Kind.F16), ("gpt-oss", Kind.BF16), ("falcon 7b", Kind.F16)])
def test_half_precision_files(name, kind, written, tmp_path):
    folder, original = written(name)
    keys = {key: value for key, value in GGUFFile(original).metadata.items() if not key.startswith("general.")}
    tensors = gguf_tensors(folder, CASES[name][0])
    file = GGUFFile(write_gguf(tmp_path / "half.gguf", CASES[name][0], keys, tensors, kind))
    for tensor, value in load_file(folder / "model.safetensors").items():
        assert np.abs(file.read(tensor) - value).max() <= np.abs(value).max() * 2**-8
    assert f"matrices in {kind.name}" in file.format


def test_experts_of_gpt_oss_in_mxfp4(tmp_path):
    """Experts that MXFP4 represents exactly, quantized by the package gguf: the tensors are those of the checkpoint."""
    sizes = {"hidden_size": 64, "intermediate_size": 32, "head_dim": 16}
    folder = write_checkpoint(tmp_path / "theirs", "gpt_oss", **sizes)
    tensors = gguf_tensors(folder, "gpt-oss")
    experts = {name: value for name, value in tensors.items() if value.ndim == 3}
    exact = {name: gguf.dequantize(gguf.quantize(value, Kind.MXFP4), Kind.MXFP4) for name, value in experts.items()}
    path = export(tmp_path / "model.gguf", folder, "gpt-oss", {"expert_feed_forward_length": 32}, kind=Kind.MXFP4)
    file = GGUFFile(path)
    assert file.format == "GGUF, architecture gpt-oss, matrices in MXFP4"
    for layer in range(3):
        prefix, stored = f"model.layers.{layer}.mlp.experts.", f"blk.{layer}.ffn_"
        gate_up = file.read(prefix + "gate_up_proj")
        assert np.array_equal(gate_up[..., ::2], exact[stored + "gate_exps.weight"].swapaxes(1, 2))
        assert np.array_equal(gate_up[..., 1::2], exact[stored + "up_exps.weight"].swapaxes(1, 2))
        assert np.array_equal(file.read(prefix + "down_proj"), exact[stored + "down_exps.weight"].swapaxes(1, 2))
    assert load(path).cfg.num_experts == 5


def test_reading_needs_little_memory_beyond_the_tensor(tmp_path):
    """At most 1.3 times the dequantized tensor, also for types that need several arrays."""
    blocks = np.tile(random_blocks(Kind.IQ3_S, 1, 8), (4096, 1))  # 4096 x 2048 values, 32 MiB
    info = write_blocks(tmp_path / "model.gguf", blocks, Kind.IQ3_S)
    tensor_reader.read(tmp_path / "model.gguf", "some.weight", info, 0)  # builds the tables of the package gguf
    tracemalloc.start()
    value = tensor_reader.read(tmp_path / "model.gguf", "some.weight", info)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert value.nbytes == 2**25 and peak <= 1.3 * value.nbytes


# ---- files in parts -------------------------------------------------------------------------------------------------


def test_a_file_in_parts(written, tmp_path):
    folder, whole = written("llama")
    keys = {key: value for key, value in GGUFFile(whole).metadata.items() if not key.startswith("general.")}
    tensors = gguf_tensors(folder, "llama")
    write_gguf(tmp_path / "m.gguf", "llama", keys, tensors, split_max_tensors=12)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert [part.name for part in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for source in (*parts, tmp_path):
        checkpoint = open_checkpoint(source)
        assert_same(GGUFFile(whole), checkpoint.tensors)
        assert checkpoint.tensors.format == "GGUF in 3 parts, architecture llama, matrices in F32"
    parts[1].rename(tmp_path / "elsewhere")
    for part in (parts[0], parts[2]):
        with pytest.raises(CheckpointError, match=r"one of 3 parts; these are missing: m-00002-of-00003\.gguf; down"):
            GGUFFile(part)
    (tmp_path / "elsewhere").write_bytes(parts[2].read_bytes())
    (tmp_path / "elsewhere").rename(parts[1])
    with pytest.raises(CheckpointError, match=r"is in m-00002-of-00003\.gguf and in m-00003-of-00003\.gguf"):
        GGUFFile(parts[0])


def test_a_part_with_too_few_tensors(written, tmp_path):
    folder, whole = written("llama")
    keys = {key: value for key, value in GGUFFile(whole).metadata.items() if not key.startswith("general.")}
    tensors = gguf_tensors(folder, "llama")
    write_gguf(tmp_path / "m.gguf", "llama", keys, tensors, split_max_tensors=16)
    (last,) = list(tensors)[-1:]
    write_gguf(tmp_path / "m-00002-of-00002.gguf", "llama", {"split.count": 2}, {last: tensors[last]})
    with pytest.raises(CheckpointError, match=r"its parts have 17 tensors; expected 31"):
        GGUFFile(tmp_path / "m-00001-of-00002.gguf")


def test_a_file_that_shrinks(written, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(written("gpt-2")[1].read_bytes())
    file = GGUFFile(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"was shortened after it was opened; token_embd\.weight is incomplete"):
        file.read("transformer.wte.weight")


# ---- exports and the table ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixtral", "granite moe"])
def test_quantised_files_can_be_exported(name, written, tmp_path):
    """The logits equal those of transformers for the exported dequantised weights."""
    folder, original = written(name)
    keys = {key: value for key, value in GGUFFile(original).metadata.items() if not key.startswith("general.")}
    tensors = gguf_tensors(folder, CASES[name][0])
    loaded = load(write_gguf(tmp_path / "model.gguf", CASES[name][0], keys, tensors, Kind.F16))
    exported = export_checkpoint(tmp_path / "exported", loaded.cfg, loaded.params, loaded.source)
    assert read_json(exported / "config.json")["model_type"] == CASES[name][1]
    expected = hf_logits(exported, random_tokens(0))
    assert np.abs(logits(loaded, random_tokens(0)) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_phi3_needs_both_lists_of_longrope_factors(written, tmp_path):
    def without_short(tensors):
        del tensors["rope_factors_short.weight"]

    def without_both(tensors):
        without_short(tensors)
        del tensors["rope_factors_long.weight"]

    message = r"LongRoPE needs rope_factors_short\.weight and rope_factors_long\.weight; one is missing"
    with pytest.raises(CheckpointError, match=message):
        respelled(tmp_path / "other.gguf", written("phi 3 long"), without_short)
    with pytest.raises(CheckpointError, match=r"rope\.scaling\.attn_factor is 1\.25; expected 1\.0"):
        respelled(tmp_path / "other.gguf", written("phi 3 long"), without_both)


def test_only_the_largest_gemmas_scale_queries_by_the_width(written):
    for name, layers in (("gemma 2", 46), ("gemma 3", 62)):
        file = GGUFFile(written(name)[1])._file
        file.shapes = {**file.shapes, **dict.fromkeys(range(100), ())}
        for count, scalar in ((layers, 36 // 6), (layers - 1, 8)):
            file.values = {**file.values, f"{file.name}.block_count": count}
            assert ARCHITECTURES[file.name].config(file)["query_pre_attn_scalar"] == scalar


def test_the_table_lists_the_architectures_of_gguf_files():
    rows = [row for row in table().splitlines() if "Also from GGUF files." in row]
    named = " ".join(row.split("|")[1] for row in rows)
    types = {kind for architecture in ARCHITECTURES.values() for kind in architecture.model_types}
    assert all(f"`{kind}`" in named for kind in types)


def test_longrope_of_phi_moe_has_the_factors_of_the_published_model():
    keys = {
        "block_count": 2, "context_length": 131072, "embedding_length": 64, "feed_forward_length": 64,
        "attention.head_count": 4, "attention.layer_norm_rms_epsilon": 1e-5, "expert_count": 4, "expert_used_count": 2,
        "rope.scaling.original_context_length": 4096, "rope.scaling.attn_factor": 1.1902381,
    }  # fmt: skip
    shapes = {"rope_factors_short.weight": (8,), "rope_factors_long.weight": (8,)}
    file = Metadata(
        "phimoe", {f"phimoe.{key}": value for key, value in keys.items()}, shapes, lambda name: np.ones(8, np.float32)
    )
    rope = ARCHITECTURES["phimoe"].config(file)["rope_parameters"]
    assert rope["short_mscale"] == rope["long_mscale"] == 1.243163121016122 and "attention_factor" not in rope


def test_groups_of_experts_that_older_files_of_deepseek_do_not_contain(written):
    file = GGUFFile(written("deepseek v3")[1])._file
    without = {key: value for key, value in file.values.items() if "expert_group" not in key}
    for count, groups in ((256, (8, 4)), (160, (8, 3)), (64, (1, 1))):
        file.values = without | {"deepseek2.expert_count": count}
        config = ARCHITECTURES["deepseek2"].config(file)
        assert (config["n_group"], config["topk_group"]) == groups


def test_the_other_kind_of_epsilon(written, tmp_path):
    keys = {"exaone.attention.layer_norm_rms_epsilon": None, "exaone.attention.layer_norm_epsilon": 1e-6}
    assert_same(*respelled(tmp_path / "other.gguf", written("exaone"), lambda tensors: None, keys))


def test_routers_with_sigmoids_are_refused_elsewhere(written, tmp_path):
    with pytest.raises(CheckpointError, match=r"expert_gating_func is 2; expected 1 or 0 or 3"):
        respelled(tmp_path / "other.gguf", written("mixtral"), lambda tensors: None, {"llama.expert_gating_func": 2})


@pytest.mark.parametrize("name", ["mixtral", "gemma 3", "gpt-oss", "deepseek v2", "falcon 40b", "granite moe"])
def test_wrong_metadata_and_tensors_raise_no_other_error(name, written, tmp_path):
    """Any value of any key, and tensors that are missing or have other shapes: a CheckpointError, or a model."""
    random, (folder, path) = np.random.default_rng(0), written(name)
    values = {key: value for key, value in GGUFFile(path).metadata.items() if not key.startswith("general.")}
    tensors, wrong = gguf_tensors(folder, CASES[name][0]), (None, 0, 7, 3.5, "x", [1, 2, 3], True, 10**6)
    shapes = (None, (4,), (3, 5), (2, 3, 4))
    trials = [({key: wrong[random.integers(len(wrong))]}, {}) for key in values]
    trials += [({}, {key: shapes[random.integers(4)]}) for key in random.choice(list(tensors), 8)]
    refused = 0
    for keys, changes in trials:
        others = {key: shape and np.zeros(shape, np.float32) for key, shape in changes.items()}
        kept = {key: value for key, value in (tensors | others).items() if value is not None}
        try:
            checkpoint = open_checkpoint(write_gguf(tmp_path / "wrong.gguf", CASES[name][0], values | keys, kept))
            for tensor in checkpoint.tensors.names():
                checkpoint.tensors.read(tensor)
                checkpoint.tensors.shape(tensor)
        except CheckpointError as error:
            refused += "wrong.gguf" in str(error)
    assert refused > len(trials) / 4
