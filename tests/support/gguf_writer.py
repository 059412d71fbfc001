"""Writes GGUF files like llama.cpp's converter, from checkpoints that transformers wrote.

The package `gguf` converts tensor names. Metadata keys and changes to tensor values are those of llama.cpp's
conversion/*.py (formerly convert_hf_to_gguf.py), written here without looking at jaxlens's table.
"""

import json

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file

PERMUTED = (
    *("llama", "mistral3", "arcee", "smollm3", "olmo", "granite", "granitemoe", "minicpm"),
    *("baichuan", "xverse", "internlm2"),
)
PLUS_ONE = ["gemma", "gemma2", "gemma3", "nemotron"]
KEYS = {  # key of the file: names of the field in config.json
    "block_count": "num_hidden_layers n_layer n_layers",
    "context_length": "max_position_embeddings n_positions max_seq_len seq_length",
    "embedding_length": "hidden_size n_embd d_model",
    "feed_forward_length": "intermediate_size n_inner ffn_hidden_size",
    "attention.head_count": "num_attention_heads n_head n_heads",
    "attention.head_count_kv": "num_kv_heads num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps layer_norm_epsilon norm_epsilon norm_eps",
    "attention.sliding_window": "sliding_window",
    "expert_count": "num_local_experts num_experts n_routed_experts",
    "expert_used_count": "num_experts_per_tok",
    "vocab_size": "vocab_size",
}


def add(writer, key, value):
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    getattr(writer, f"add_{kinds[type(value)]}")(key, value)


def metadata(config):
    """The keys that most architectures have, without the first part."""
    keys = {}
    for key, fields in KEYS.items():
        value = next((config[field] for field in fields.split() if config.get(field) is not None), None)
        if value is not None:
            keys[key] = value
    rope = config.get("rope_parameters") or {}
    rope, local = rope.get("full_attention", rope), rope.get("sliding_attention", {})
    if "rope_theta" in rope:
        keys["rope.freq_base"] = float(rope["rope_theta"])
    if "rope_theta" in local:
        keys["rope.freq_base_swa"] = float(local["rope_theta"])
    if rope.get("rope_type") in ("linear", "yarn"):
        keys |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope.get("rope_type") == "yarn":
        keys["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        for field in ("beta_fast", "beta_slow"):
            keys |= {f"rope.scaling.yarn_{field}": float(rope[field])} if field in rope else {}
    size = config.get("head_dim") or keys["embedding_length"] // keys["attention.head_count"]
    if rope:
        keys["rope.dimension_count"] = round(size * rope.get("partial_rotary_factor", 1))
    keys.setdefault("feed_forward_length", 4 * keys["embedding_length"])
    return keys


def permute(value, heads):
    """llama.cpp's order of rows: row i of the first half of a head is followed by row i of the second half."""
    size = len(value) // heads
    return value[[h * size + i + half * size // 2 for h in range(heads) for i in range(size // 2) for half in (0, 1)]]


def grouped(value, groups, sizes):
    """Rows of each group (queries, keys, values of `sizes` heads) as all queries, all keys, all values."""
    parts = np.split(value.reshape(groups, sum(sizes), -1, *value.shape[1:]), np.cumsum(sizes)[:-1], axis=1)
    return np.concatenate([part.reshape(-1, *value.shape[1:]) for part in parts])


def converted(architecture, config, tensors):
    """Names, mostly of Hugging Face, and values after the converter."""
    heads = config.get("num_attention_heads") or config.get("n_head") or config.get("n_heads")
    kv_heads = config.get("num_kv_heads") or config.get("num_key_value_heads") or heads
    stacked = {}
    for name, value in tensors.items():
        suffix = name.rpartition(".")[2]
        if architecture in PERMUTED and ("q_proj" in name or "k_proj" in name):
            value = permute(value, heads if "q_proj" in name else kv_heads)
        if architecture in PLUS_ONE and name.endswith("norm.weight"):
            value = value + 1
        if architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            value = value.T
        if "query_key_value" in name:
            groups, sizes = heads, (1, 1, 1)
            if architecture == "falcon":
                groups = 1 if config["multi_query"] and not config["new_decoder_architecture"] else kv_heads
                sizes = (heads // groups, 1, 1)
            value = grouped(value, groups, sizes)
        if ".experts." in name and name.split(".experts.")[1][0].isdigit():
            before, after = name.split(".experts.")
            index, kind = after.split(".")[:2]
            merged = f"{before}.experts.{kind}.weight"
            if architecture == "llama":
                merged = merged.replace("model.layers", "layers").replace("block_sparse_moe", "feed_forward")
            stacked.setdefault(merged, {})[int(index)] = value
        elif "layernorm.norms." in name:
            before, after = name.split(".norms.")
            stacked.setdefault(f"{before}.weight", {})[int(after.split(".")[0])] = value
        elif name.endswith("experts.gate_up_proj"):
            gate, up = value.swapaxes(1, 2)[:, ::2], value.swapaxes(1, 2)[:, 1::2]
            yield name.replace("gate_up_proj", "gate_proj.weight"), gate
            yield name.replace("gate_up_proj", "up_proj.weight"), up
        elif name.endswith("experts.gate_up_proj_bias"):
            yield name.replace("gate_up_proj_bias", "gate_proj.bias"), value[:, ::2]
            yield name.replace("gate_up_proj_bias", "up_proj.bias"), value[:, 1::2]
        elif name.endswith(("experts.down_proj", "experts.down_proj_bias")):
            bias = name.endswith("bias")
            yield name.removesuffix("_bias") + (".bias" if bias else ".weight"), value if bias else value.swapaxes(1, 2)
        elif name.endswith("sinks"):
            yield name + ".weight", value
        elif name.endswith("block_sparse_moe.input_linear.weight"):
            gate, up = np.split(value, 2, axis=1)
            layer = name.split(".")[2]
            yield f"blk.{layer}.ffn_gate_exps.weight", gate
            yield f"blk.{layer}.ffn_up_exps.weight", up
        elif name.endswith("kv_b_proj.weight"):
            whole = value.reshape(heads, -1, value.shape[-1])
            yield name.replace("kv_b", "k_b"), whole[:, : config["qk_nope_head_dim"]].swapaxes(1, 2)
            yield name.replace("kv_b", "v_b"), whole[:, config["qk_nope_head_dim"] :]
        elif name.endswith("e_score_correction_bias"):
            yield name.replace("e_score_correction_bias", "e_score_correction.bias"), value
        elif suffix in ("alpha_p", "alpha_n", "beta", "eps"):
            pass
        else:
            yield name, value
    for name, values in stacked.items():
        yield name, np.stack([values[i] for i in range(len(values))])


def xielu(config, tensors):
    names = ("alpha_p", "alpha_n", "beta", "eps")
    layers = range(config["num_hidden_layers"])
    return {
        f"xielu.{name}": [float(tensors[f"model.layers.{i}.mlp.act_fn.{name}"].reshape(())) for i in layers]
        for name in names
    }


def frequency_factors(config, tensors):
    """rope_freqs.weight and rope_factors_*.weight: of Llama 3's scaling and of LongRoPE."""
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "llama3":
        from types import SimpleNamespace

        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        options = SimpleNamespace(**config, standardize_rope_params=lambda: None)
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](options, torch.device("cpu"))
        size = config["head_dim"]
        plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
        return {"rope_freqs.weight": (plain / scaled).numpy()}
    if rope.get("rope_type") == "longrope":
        return {f"rope_factors_{x}.weight": np.float32(rope[f"{x}_factor"]) for x in ("short", "long")}
    return {}


def gguf_tensors(folder, architecture):
    """The tensors of a GGUF file for a checkpoint that transformers wrote."""
    config = json.loads((folder / "config.json").read_text())
    originals = load_file(folder / "model.safetensors")
    layers = config.get("num_hidden_layers") or config.get("n_layer") or config.get("n_layers")
    kinds = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], layers)
    tensors = {}
    for name, value in converted(architecture, config, originals):
        name = name.removeprefix("transformer.") if architecture == "bloom" else name
        stored = name if name.startswith("blk.") else names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored, name
        tensors[stored] = np.ascontiguousarray(value)
    return tensors | frequency_factors(config, originals)


def write_gguf(path, architecture, keys, tensors, kind=Kind.F32, split_max_tensors=0):
    """Writes a file. Keys that start with a dot have the architecture as their first part. None: no such key."""
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split_max_tensors)
    for key, value in keys.items():
        if value is not None:
            add(writer, f"{architecture}{key}" if key.startswith(".") else key, value)
    for name, value in tensors.items():
        stored = kind if value.ndim > 1 else Kind.F32
        writer.add_tensor(name, value if stored == Kind.F32 else gguf.quantize(value, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def export(path, folder, architecture, keys=(), **options):
    """Writes a checkpoint of transformers as a GGUF file. `keys` are added to those of `metadata`."""
    config = json.loads((folder / "config.json").read_text())
    own = {f".{key}": value for key, value in (metadata(config) | dict(keys)).items()}
    if architecture == "apertus":
        own |= xielu(config, load_file(folder / "model.safetensors"))
    return write_gguf(path, architecture, own, gguf_tensors(folder, architecture), **options)
