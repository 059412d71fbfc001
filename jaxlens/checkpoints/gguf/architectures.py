"""Converts the architectures of llama.cpp to those of Hugging Face.

An `Architecture` converts the metadata of a GGUF file to the fields of config.json, converts tensor names, and reverses
llama.cpp's changes to tensor values. It adds the config.json fields that llama.cpp hard-codes instead of storing them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxlens.errors import CheckpointError

IGNORED_PREFIXES = ("general.", "tokenizer.", "quantize.", "GGUF.", "split.", "imatrix.", "mradermacher.")
"""Metadata about the file, its vocabulary and its creation, without effect on a forward pass."""

Undo = Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]


class Metadata:
    """The metadata of a file. Methods take keys without their first part, which is the `name` of the architecture.

    `unread` are the keys that were not read yet. `tensors` are the names of the file's tensors, and `read` reads one.
    `used` are the tensors that were read as metadata: factors of rotary frequencies.
    """

    def __init__(self, name: str, values: Mapping[str, Any], tensors: set[str], read: Callable[[str], np.ndarray]):
        self.name, self.values, self.tensors, self._read = name, values, tensors, read
        self.unread = {key for key in values if not key.startswith(IGNORED_PREFIXES)}
        self.used: set[str] = set()

    def get(self, *keys: str, default: Any = None) -> Any:
        """The value of the first of `keys` in the file. The entries of a list, one per layer, must be equal."""
        for key in (f"{self.name}.{key}" for key in keys):
            if key in self.values:
                self.unread.discard(key)
                value = self.values[key]
                if isinstance(value, list) and (not value or any(item != value[0] for item in value)):
                    raise CheckpointError(f"{key} is {value}; expected the same value for all layers")
                return value[0] if isinstance(value, list) else value
        return default

    def positive(self, *keys: str) -> Any:
        """Like `get`, for a positive number."""
        value = self.get(*keys)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise CheckpointError(f"{self.name}.{keys[0]} is {value!r}; expected a positive number")
        return value

    def expect(self, key: str, supported: Any) -> None:
        """Raises a CheckpointError unless the key is absent or has the supported value."""
        if (value := self.get(key, default=supported)) != supported:
            raise CheckpointError(f"{self.name}.{key} is {value!r}; expected {supported!r}")

    def has(self, tensor: str) -> bool:
        return tensor in self.tensors

    def frequency_factors(self, tensor: str, count: int) -> list[float] | None:
        """The divisors of `count` rotary frequencies, from a tensor. None if the file does not contain it."""
        if not self.has(tensor):
            return None
        self.used.add(tensor)
        values = self._read(tensor)
        if values.shape != (count,):
            raise CheckpointError(f"{tensor} has shape {values.shape}; expected {(count,)}, one factor per frequency")
        return [float(str(value)) for value in values]


@dataclass(frozen=True)
class Architecture:
    """How to read one architecture. Tensor names have no `.weight` or `.bias`, and `{i}` stands for the layer."""

    model_type: str
    config: Callable[[Metadata], dict[str, Any]]  # the fields of config.json that depend on the architecture
    tensors: Mapping[str, str]  # GGUF name -> Hugging Face name
    undo: Mapping[str, Undo] = field(default_factory=dict)  # GGUF name in a layer -> how to reverse its changes


# ---- config.json ----------------------------------------------------------------------------------------------------


def common_fields(file: Metadata) -> dict[str, Any]:
    """The fields of all architectures except GPT-2."""
    config = {
        "hidden_size": file.positive("embedding_length"), "intermediate_size": file.positive("feed_forward_length"),
        "num_hidden_layers": file.positive("block_count"), "num_attention_heads": file.positive("attention.head_count"),
        "num_key_value_heads": file.positive("attention.head_count_kv", "attention.head_count"),
        "rms_norm_eps": file.positive("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": file.positive("context_length"),
    }  # fmt: skip
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    if (layers := config["num_hidden_layers"]) > len(file.tensors):
        raise CheckpointError(f"{file.name}.block_count is {layers}, but the file has only {len(file.tensors)} tensors")
    if heads % kv_heads:
        groups = f"{kv_heads} groups, one per key/value head"
        raise CheckpointError(f"{heads} attention heads cannot be divided into {groups}")
    config["head_dim"] = file.get("attention.key_length", default=config["hidden_size"] // heads)
    file.expect("attention.value_length", config["head_dim"])
    for key, supported in {"attention.causal": True, "expert_count": 0, "expert_used_count": 0}.items():
        file.expect(key, supported)
    return config


def fields_with_rope(file: Metadata) -> dict[str, Any]:
    """`common_fields` and `rope_parameters`, for architectures that rotate all dimensions of a head in all layers."""
    config = common_fields(file)
    file.expect("rope.dimension_count", config["head_dim"])
    return config | {"rope_parameters": rope_parameters(file, config["head_dim"], config["max_position_embeddings"])}


def rope_parameters(file: Metadata, head_dim: int, context: int) -> dict[str, Any]:
    """Hugging Face's `rope_parameters`.

    A file contains Llama 3's scaling as one divisor per frequency, without the parameters that determine them. It is
    read as LongRoPE with equal short and long factors, which divides by the same numbers.
    """
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(file.get("rope.freq_base", default=10000.0))}
    kind = file.get("rope.scaling.type", default="linear")
    factor = float(file.get("rope.scaling.factor", "rope.scale_linear") or 1.0)
    original = file.get("rope.scaling.original_context_length", default=context)
    betas = {beta: file.get(f"rope.scaling.yarn_{beta}") for beta in ("beta_fast", "beta_slow") if kind == "yarn"}
    file.get("rope.scaling.finetuned")
    for key in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"):
        file.expect(key, 1.0)
    if kind not in ("none", "linear", "yarn"):
        raise CheckpointError(f"{file.name}.rope.scaling.type is {kind!r}; expected none, linear or yarn")
    scaled = kind != "none" and factor != 1.0
    factors = file.frequency_factors("rope_freqs.weight", head_dim // 2)
    if factors is not None and scaled:
        raise CheckpointError(f"the file has rope_freqs.weight and {kind} scaling by {factor}; expected one of the two")
    if factors is not None:
        longrope = {"short_factor": factors, "long_factor": factors, "attention_factor": 1.0}
        return rope | {"rope_type": "longrope", **longrope, "original_max_position_embeddings": context}
    if not scaled:
        return rope
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": factor}
    given = {beta: value for beta, value in betas.items() if value is not None}
    return rope | {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **given}


def llama(file: Metadata) -> dict[str, Any]:
    file.expect("tensor_data_layout", "Meta AI original pth")  # its rows are interleaved; see `undo_interleave`
    biases = {"attention_bias": file.has("blk.0.attn_q.bias"), "mlp_bias": file.has("blk.0.ffn_gate.bias")}
    return fields_with_rope(file) | biases | {"hidden_act": "silu"}


def qwen2(file: Metadata) -> dict[str, Any]:
    return fields_with_rope(file) | {"hidden_act": "silu"}


def qwen3(file: Metadata) -> dict[str, Any]:
    return qwen2(file) | {"attention_bias": file.has("blk.0.attn_q.bias")}


def gemma(file: Metadata, config: dict[str, Any], n_layers_of_largest: int) -> dict[str, Any]:
    """The fields of Gemma 2 and 3. Only the largest models scale queries by hidden_size / n_heads."""
    heads = config["num_attention_heads"]
    is_largest = config["num_hidden_layers"] == n_layers_of_largest
    return config | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": config["hidden_size"] // heads if is_largest else config["head_dim"],
        "final_logit_softcapping": file.get("final_logit_softcapping"),
        "sliding_window": file.positive("attention.sliding_window"),
    }


def gemma2(file: Metadata) -> dict[str, Any]:
    """Every second layer is global, which is also the default of config.json."""
    return gemma(file, fields_with_rope(file), 46) | {"attn_logit_softcapping": file.get("attn_logit_softcapping")}


def gemma3(file: Metadata) -> dict[str, Any]:
    """Every sixth layer is global. The rope base and scaling in the file are those of the global layers."""
    config = gemma(file, fields_with_rope(file), 62)
    local = {"rope_type": "default", "rope_theta": float(file.get("rope.freq_base_swa", default=10000.0))}
    layers = range(1, config["num_hidden_layers"] + 1)
    types = ["sliding_attention" if layer % 6 else "full_attention" for layer in layers]
    rope = {"full_attention": config["rope_parameters"], "sliding_attention": local}
    return config | {"rope_parameters": rope, "layer_types": types}


def phi3(file: Metadata) -> dict[str, Any]:
    """The rotary embedding may leave some dimensions of a head unchanged. LongRoPE's two lists are tensors."""
    config = common_fields(file)
    dim = file.get("rope.dimension_count", default=config["head_dim"])
    original = file.get("rope.scaling.original_context_length", default=config["max_position_embeddings"])
    base = float(file.get("rope.freq_base", default=10000.0))
    rope = {"rope_theta": base, "partial_rotary_factor": dim / config["head_dim"]}
    short, long = (file.frequency_factors(f"rope_factors_{kind}.weight", dim // 2) for kind in ("short", "long"))
    attention_factor = file.get("rope.scaling.attn_factor", default=1.0)
    if short and long:
        rope |= {"rope_type": "longrope", "short_factor": short, "long_factor": long}
        rope |= {"attention_factor": attention_factor, "original_max_position_embeddings": original}
    elif short or long or attention_factor != 1.0:
        raise CheckpointError("LongRoPE needs rope_factors_short.weight and rope_factors_long.weight; one is missing")
    return config | {
        "hidden_act": "silu",
        "rope_parameters": rope,
        "original_max_position_embeddings": original,
        "sliding_window": file.get("attention.sliding_window") or None,  # 0: no window
    }


def gpt2(file: Metadata) -> dict[str, Any]:
    heads = file.positive("attention.head_count")
    file.expect("attention.head_count_kv", heads)
    file.expect("attention.causal", True)
    return {
        "n_embd": file.positive("embedding_length"), "n_inner": file.positive("feed_forward_length"),
        "n_layer": file.positive("block_count"), "n_head": heads, "n_positions": file.positive("context_length"),
        "layer_norm_epsilon": file.positive("attention.layer_norm_epsilon"), "activation_function": "gelu_new",
    }  # fmt: skip


# ---- tensors --------------------------------------------------------------------------------------------------------


def undo_interleave(heads_field: str) -> Undo:
    """Reorders rows: llama.cpp rotates pairs of adjacent rows, Hugging Face pairs from the two halves of a head."""

    def undo(value: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
        heads, size = config[heads_field], config["head_dim"]
        if len(value) != heads * size:
            raise CheckpointError(f"has {len(value)} rows; expected {heads * size}, for {heads} heads of size {size}")
        pairs = value.reshape(heads, size // 2, 2, *value.shape[1:])
        return pairs.swapaxes(1, 2).reshape(value.shape)

    return undo


def undo_transpose(value: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """Transposes matrices, which are [in, out] in Hugging Face's GPT-2. A bias has one axis and does not change."""
    return value.T


def undo_offset(value: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """Subtracts one. Gemma's norms multiply by 1 + weight, and the file contains 1 + weight."""
    return value - 1


LAYER = "model.layers.{i}."
OUTSIDE_LAYERS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ATTENTION = {f"blk.{{i}}.attn_{letter}": f"{LAYER}self_attn.{letter}_proj" for letter in "qkv"}
QK_NORM = {f"blk.{{i}}.attn_{letter}_norm": f"{LAYER}self_attn.{letter}_norm" for letter in "qk"}
MLP = {f"blk.{{i}}.ffn_{kind}": f"{LAYER}mlp.{kind}_proj" for kind in ("gate", "up", "down")}
OUT = {"blk.{i}.attn_output": f"{LAYER}self_attn.o_proj"}
TWO_NORMS = {"blk.{i}.attn_norm": f"{LAYER}input_layernorm", "blk.{i}.ffn_norm": f"{LAYER}post_attention_layernorm"}
FOUR_NORMS = {
    "blk.{i}.attn_norm": f"{LAYER}input_layernorm",
    "blk.{i}.post_attention_norm": f"{LAYER}post_attention_layernorm",
    "blk.{i}.ffn_norm": f"{LAYER}pre_feedforward_layernorm",
    "blk.{i}.post_ffw_norm": f"{LAYER}post_feedforward_layernorm",
}
FUSED = {"blk.{i}.attn_qkv": f"{LAYER}self_attn.qkv_proj", "blk.{i}.ffn_up": f"{LAYER}mlp.gate_up_proj"}
GPT2 = {
    "token_embd": "transformer.wte", "position_embd": "transformer.wpe", "blk.{i}.attn_norm": "transformer.h.{i}.ln_1",
    "blk.{i}.attn_qkv": "transformer.h.{i}.attn.c_attn", "blk.{i}.attn_output": "transformer.h.{i}.attn.c_proj",
    "blk.{i}.ffn_norm": "transformer.h.{i}.ln_2", "blk.{i}.ffn_up": "transformer.h.{i}.mlp.c_fc",
    "blk.{i}.ffn_down": "transformer.h.{i}.mlp.c_proj", "output_norm": "transformer.ln_f", "output": "lm_head",
}  # fmt: skip
LLAMA = {**OUTSIDE_LAYERS, **TWO_NORMS, **ATTENTION, **OUT, **MLP}
NORMS = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "attn_q_norm", "attn_k_norm", "output_norm")

ARCHITECTURES = {
    "llama": Architecture(
        "llama", llama, LLAMA,
        {"attn_q": undo_interleave("num_attention_heads"), "attn_k": undo_interleave("num_key_value_heads")},
    ),
    "qwen2": Architecture("qwen2", qwen2, LLAMA),
    "qwen3": Architecture("qwen3", qwen3, {**LLAMA, **QK_NORM}),
    "gemma2": Architecture("gemma2", gemma2, {**LLAMA, **FOUR_NORMS}, dict.fromkeys(NORMS, undo_offset)),
    "gemma3": Architecture(
        "gemma3_text", gemma3, {**LLAMA, **FOUR_NORMS, **QK_NORM}, dict.fromkeys(NORMS, undo_offset)
    ),
    "phi3": Architecture(
        "phi3", phi3, {**OUTSIDE_LAYERS, **TWO_NORMS, **OUT, **FUSED, "blk.{i}.ffn_down": f"{LAYER}mlp.down_proj"}
    ),
    "gpt2": Architecture(
        "gpt2", gpt2, GPT2, dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), undo_transpose)
    ),
}  # fmt: skip
