"""GGUF files of every architecture, written like llama.cpp's converter, equal the original checkpoints."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file
from support.tiny import hf_logits, random_tokens, write_checkpoint
from test_gguf import add, interleave

from jaxlens import CheckpointError, HookedTransformer
from jaxlens.checkpoints import export, load
from jaxlens.checkpoints.gguf.file import ARCHITECTURES, GGUFFile
from jaxlens.checkpoints.safetensors_reader import read_json
from jaxlens.cli.commands.families import table

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 61, "max_position_embeddings": 64,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 16,
    "attention_factor": 1.25, "short_factor": [1.0, 1.25, 1.5, 1.75, 2.0, 2.5],
    "long_factor": [1.5, 2.0, 3.0, 4.0, 6.0, 8.0],
}  # fmt: skip
TIED = {"head_dim": 16, "tie_word_embeddings": True, "rope_parameters": {"rope_theta": 500.0}}
GEMMA = {**SIZES, "query_pre_attn_scalar": 32, "sliding_window": 7}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
FILES = {  # name: architecture, model_type, fields, optional keys
    "llama": ("llama", "llama", {**SIZES, "head_dim": 16}, {"rope.dimension_count": 16}),
    "qwen2": ("qwen2", "qwen2", {**SIZES, **TIED}, {"rope.freq_base": 500.0}),
    "qwen3": ("qwen3", "qwen3", SIZES, {"attention.key_length": 32, "attention.value_length": 32}),
    "gemma2": (
        "gemma2", "gemma2", {**GEMMA, "num_hidden_layers": 3, "attn_logit_softcapping": 2.0},
        {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "gemma3", "gemma3_text",
        {**GEMMA, "num_hidden_layers": 7, "sliding_window_pattern": 6, "rope_parameters": GEMMA3_ROPE},
        {"rope.freq_base": 1e5, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    "phi3": ("phi3", "phi3", {**SIZES, "head_dim": 16, "sliding_window": 7}, {"rope.dimension_count": 16}),
    "phi3 long": (
        "phi3", "phi3", {**SIZES, "head_dim": 16, "rope_parameters": LONG, "original_max_position_embeddings": 16},
        {
            "rope.dimension_count": 12, "rope.scaling.original_context_length": 16,
            "rope.scaling.attn_factor": 1.25,
        },
    ),
    "gpt2": ("gpt2", "gpt2", {"n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 61, "n_positions": 64}, {}),
}  # fmt: skip


def metadata(architecture, fields, more):
    if architecture == "gpt2":
        keys = {
            "context_length": 64, "embedding_length": 64, "feed_forward_length": 256, "block_count": 2,
            "attention.head_count": 4, "attention.layer_norm_epsilon": 1e-5,
        }  # fmt: skip
    else:
        keys = {
            "context_length": 64, "embedding_length": fields["hidden_size"],
            "feed_forward_length": fields["intermediate_size"], "block_count": fields["num_hidden_layers"],
            "attention.head_count": 4, "attention.head_count_kv": 2,
            "attention.layer_norm_rms_epsilon": 1e-5 if architecture == "phi3" else 1e-6,
        }  # fmt: skip
    if architecture.startswith("gemma"):
        keys |= {"attention.key_length": 32, "attention.value_length": 32}
    if "sliding_window" in fields or architecture == "phi3":
        keys["attention.sliding_window"] = fields.get("sliding_window", 0)
    return keys | more


def converted_value(architecture, name, value):
    """A tensor after llama.cpp's converter. The package `gguf` converts the names."""
    if architecture == "llama" and "q_proj" in name:
        return interleave(value, 4)
    if architecture == "llama" and "k_proj" in name:
        return interleave(value, 2)
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return value + 1
    if architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return value.T
    return value


def write(path, folder, architecture, fields, more, kind=Kind.F32, extra=()):
    kinds = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], fields.get("num_hidden_layers", 2))
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata(architecture, fields, more).items():
        add(writer, f"{architecture}.{key}", value)
    tensors = {}
    for name, value in load_file(folder / "model.safetensors").items():
        value = np.ascontiguousarray(converted_value(architecture, name, value))
        tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))] = value
    if "rope_parameters" in fields and architecture == "phi3":
        for length in ("short", "long"):
            tensors[f"rope_factors_{length}.weight"] = np.float32(fields["rope_parameters"][f"{length}_factor"])
    for name, value in {**tensors, **dict(extra)}.items():
        stored = kind if value.ndim == 2 else Kind.F32
        writer.add_tensor(name, value if stored == Kind.F32 else gguf.quantize(value, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(loaded, tokens):
    return np.asarray(HookedTransformer(loaded.cfg, params=loaded.params)(tokens))


@pytest.fixture(autouse=True)
def no_tokenizer(monkeypatch):
    monkeypatch.setattr(GGUFFile, "tokenizer", lambda self: None)


@pytest.mark.parametrize("name", FILES)
def test_a_file_equals_the_original_checkpoint(name, tmp_path):
    """The Configs are equal, tensors are equal bit for bit (1 + w for Gemma's norms), and logits within 1e-5."""
    architecture, model_type, fields, more = FILES[name]
    folder = write_checkpoint(tmp_path / "theirs", model_type, **fields)
    loaded = load(write(tmp_path / "model.gguf", folder, architecture, fields, more))
    original = load(folder)
    changed = {field for field in vars(original.cfg) if getattr(original.cfg, field) != getattr(loaded.cfg, field)}
    assert changed - {"_hash"} == {"model_name"}, changed
    assert (loaded.cfg.model_name, original.cfg.model_name) == ("model.gguf", "theirs")
    for weight, value in original.params.items():
        ours, theirs = np.asarray(loaded.params[weight]), np.asarray(value)
        if architecture.startswith("gemma") and weight.endswith(".w"):
            ours, theirs = ours + np.float32(1), theirs + np.float32(1)
        assert np.array_equal(ours, theirs), weight
    tokens, expected = random_tokens(0), hf_logits(folder, random_tokens(0))
    assert np.abs(logits(loaded, tokens) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "phi3 long", "gpt2"])
@pytest.mark.parametrize("kind", [Kind.F16, Kind.Q8_0])
def test_quantised_files(name, kind, tmp_path):
    """The logits equal those of transformers for the exported dequantised weights."""
    architecture, model_type, fields, more = FILES[name]
    folder = write_checkpoint(tmp_path / "theirs", model_type, **fields)
    loaded = load(write(tmp_path / "model.gguf", folder, architecture, fields, more, kind))
    exported = export(tmp_path / "exported", loaded.cfg, loaded.params, loaded.source)
    assert read_json(exported / "config.json")["model_type"] == model_type
    expected = hf_logits(exported, random_tokens(0))
    assert np.abs(logits(loaded, random_tokens(0)) - expected).max() <= 1e-5 * np.abs(expected).max()
    unquantised = hf_logits(folder, random_tokens(0))
    assert 0 < np.abs(expected - unquantised).max() < 0.2 * np.abs(unquantised).max()


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q6_K])
def test_k_quants(kind, tmp_path):
    """Random blocks of 256 values with nested scales. The package `gguf` can only dequantise them."""
    fields = {**SIZES, "hidden_size": 256, "head_dim": 64, "intermediate_size": 256}
    folder = write_checkpoint(tmp_path / "theirs", "qwen2", **fields)
    path = write(tmp_path / "model.gguf", folder, "qwen2", fields, {}, Kind.Q8_0)
    size = gguf.GGML_QUANT_SIZES[kind][1]
    random = np.random.default_rng(0)
    rows = random.integers(0, 256, (256, size), np.uint8)
    for start in (0, 2) if kind == Kind.Q4_K else (size - 2,):  # float16 scales
        rows[:, start : start + 2] = random.uniform(0.001, 0.01, (256, 1)).astype(np.float16).view(np.uint8)
    data = bytearray(path.read_bytes())
    entry = data.index(b"blk.0.ffn_up.weight") + len("blk.0.ffn_up.weight") + 4 + 16
    data[entry : entry + 4] = int(kind).to_bytes(4, "little")
    info = GGUFFile(path)._tensors["blk.0.ffn_up.weight"]
    data[info.start : info.start + rows.size] = rows.tobytes()  # shorter than the Q8_0 tensor
    path.write_bytes(data)
    read = GGUFFile(path).read("model.layers.0.mlp.up_proj.weight")
    assert np.array_equal(read, gguf.dequantize(rows, kind)) and np.isfinite(read).all() and read.std() > 0
    if kind == Kind.Q6_K:  # the first value: 4 low bits and 2 high bits, minus 32, times two scales
        low, high, scale = rows[0, 0] & 15, rows[0, 128] & 3, rows[0, 192:193].view(np.int8)[0]
        outer_scale = np.float32(rows[0, -2:].copy().view(np.float16)[0])
        assert read[0, 0] == np.float32(outer_scale * scale) * np.float32(int(low | high << 4) - 32)
    assert load(path).cfg.d_mlp == 256


def test_phi3_needs_both_lists_of_longrope_factors(tmp_path):
    architecture, model_type, fields, more = FILES["phi3 long"]
    folder = write_checkpoint(tmp_path / "theirs", model_type, **fields)
    path = tmp_path / "model.gguf"
    plain = {name: value for name, value in fields.items() if name != "rope_parameters"}
    without = {**more, "rope.scaling.attn_factor": 1.0}
    for extra, changed in (({}, more), ({"rope_factors_long.weight": np.ones(6, np.float32)}, without)):
        with pytest.raises(CheckpointError, match=r"LongRoPE needs rope_factors_short\.weight and rope_factors_long"):
            GGUFFile(write(path, folder, architecture, plain, changed, extra=extra.items()))
    assert GGUFFile(write(path, folder, architecture, plain, without)).config["rope_parameters"] == {
        "rope_theta": 1e4, "partial_rotary_factor": 0.75,
    }  # fmt: skip


def test_only_the_largest_gemmas_scale_queries_by_the_width(tmp_path):
    from jaxlens.checkpoints.gguf.architectures import Metadata, gemma2, gemma3

    for config, layers in ((gemma2, 46), (gemma3, 62)):
        for count, scalar in ((layers, 16), (layers - 1, 32)):
            fields = {**GEMMA, "num_hidden_layers": count}
            keys = {f"g.{key}": value for key, value in metadata("gemma", fields, {}).items()}
            file = Metadata("g", keys, set(map(str, range(100))), None)
            assert config(file)["query_pre_attn_scalar"] == scalar and not file.unread


def test_the_table_lists_the_architectures_of_gguf_files():
    rows = [row for row in table().splitlines() if "Also from GGUF files." in row]
    named = " ".join(row.split("|")[1] for row in rows)
    assert len(rows) == len({architecture.model_type for architecture in ARCHITECTURES.values()})
    assert all(f"`{architecture.model_type}`" in named for architecture in ARCHITECTURES.values())
