"""How llama.cpp writes the architectures that it shares with Hugging Face.

An `Architecture` turns metadata into the fields of a config.json, names tensors as Hugging Face does, and undoes what
was done to their values. What a file does not say because llama.cpp knows it by the architecture is said here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxlens.errors import CheckpointError

# Metadata that describes the file, its vocabulary or how it was made; nothing in it changes what the model computes.
# (A file in parts is refused by `split.count` before it comes to this.)
IGNORED_PREFIXES = ("general.", "tokenizer.", "quantize.", "GGUF.", "split.", "imatrix.", "mradermacher.")


Undo = Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]


class Metadata:
    """The metadata of one file, remembering which keys were read, so that none is passed over unseen.

    Keys are given without the architecture's name. `tensors` are the names of the file's tensors, `read` reads one;
    those that belong to the metadata (factors of frequencies) are kept in `used`.
    """

    def __init__(self, name: str, values: Mapping[str, Any], tensors: set[str], read: Callable[[str], np.ndarray]):
        self.name, self.values, self.tensors, self._read = name, values, tensors, read
        self.unread = {key for key in values if not key.startswith(IGNORED_PREFIXES)}
        self.used: set[str] = set()

    def get(self, *keys: str, default: Any = None) -> Any:
        """The value of the first of `keys` that the file has; a list, one value for each layer, must hold equals."""
        for key in (f"{self.name}.{key}" for key in keys):
            if key in self.values:
                self.unread.discard(key)
                value = self.values[key]
                if isinstance(value, list) and (not value or any(item != value[0] for item in value)):
                    raise CheckpointError(f"{key} differs between layers ({value}); only equal layers can be read")
                return value[0] if isinstance(value, list) else value
        return default

    def positive(self, *keys: str) -> Any:
        """The same, which must be a positive number."""
        value = self.get(*keys)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise CheckpointError(f"{self.name}.{keys[0]} is {value!r}, where a positive number was wanted")
        return value

    def require(self, key: str, wanted: Any) -> None:
        """Reads a key that may be absent and is understood for one value only."""
        if (value := self.get(key, default=wanted)) != wanted:
            raise CheckpointError(f"{self.name}.{key} is {value!r}; only {wanted!r} can be read")

    def has(self, tensor: str) -> bool:
        return tensor in self.tensors

    def factors(self, tensor: str, count: int) -> list[float] | None:
        """What each of `count` frequencies is divided by, if the file says so: it says it in a tensor."""
        if not self.has(tensor):
            return None
        self.used.add(tensor)
        values = self._read(tensor)
        if values.shape != (count,):
            raise CheckpointError(f"{tensor} has shape {values.shape}; one factor for each of {count} was wanted")
        return [float(str(value)) for value in values]


@dataclass(frozen=True)
class Architecture:
    """How one architecture is written.

    `config` makes the fields that only this architecture has of the metadata. `tensors`: GGUF name without `.weight`
    or `.bias` -> Hugging Face name, `{i}` the layer. `undo`: tensor of a layer -> what returns it to Hugging Face's
    values and layout, given the config.
    """

    model_type: str
    config: Callable[[Metadata], dict[str, Any]]
    tensors: Mapping[str, str]
    undo: Mapping[str, Undo] = field(default_factory=dict)


# ---- config.json ----------------------------------------------------------------------------------------------------


def sizes(file: Metadata) -> dict[str, Any]:
    """What all but GPT-2 are described by."""
    config = {
        "hidden_size": file.positive("embedding_length"),
        "intermediate_size": file.positive("feed_forward_length"),
        "num_hidden_layers": file.positive("block_count"),
        "num_attention_heads": file.positive("attention.head_count"),
        "num_key_value_heads": file.positive("attention.head_count_kv", "attention.head_count"),
        "rms_norm_eps": file.positive("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": file.positive("context_length"),
    }
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    if config["num_hidden_layers"] > len(file.tensors):
        raise CheckpointError(f"it has {config['num_hidden_layers']} layers in only {len(file.tensors)} tensors")
    if heads % groups:
        raise CheckpointError(f"{heads} attention heads cannot share {groups} key-value heads evenly")
    config["head_dim"] = file.get("attention.key_length", default=config["hidden_size"] // heads)
    file.require("attention.value_length", config["head_dim"])
    for key, wanted in {"attention.causal": True, "expert_count": 0, "expert_used_count": 0}.items():
        file.require(key, wanted)
    return config


def turning(file: Metadata) -> dict[str, Any]:
    """The same, for an architecture that turns whole heads, in all layers alike."""
    config = sizes(file)
    file.require("rope.dimension_count", config["head_dim"])
    return config | {"rope_parameters": rope(file, config["head_dim"], config["max_position_embeddings"])}


def rope(file: Metadata, head_dim: int, context: int) -> dict[str, Any]:
    """Hugging Face's `rope_parameters`.

    Llama 3's scaling is in the file as what each frequency is divided by, without the four numbers that these factors
    were computed from. LongRoPE with equal short and long factors divides by just these, so nothing is lost.
    """
    turns: dict[str, Any] = {"rope_type": "default", "rope_theta": float(file.get("rope.freq_base", default=10000.0))}
    kind = file.get("rope.scaling.type", default="linear")
    factor = float(file.get("rope.scaling.factor", "rope.scale_linear") or 1.0)
    original = file.get("rope.scaling.original_context_length", default=context)
    betas = {beta: file.get(f"rope.scaling.yarn_{beta}") for beta in ("beta_fast", "beta_slow") if kind == "yarn"}
    file.get("rope.scaling.finetuned")
    for key in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"):
        file.require(key, 1.0)
    if kind not in ("none", "linear", "yarn"):
        raise CheckpointError(f"{file.name}.rope.scaling.type is {kind!r}; only none, linear and yarn can be read")
    scaled = kind != "none" and factor != 1.0
    factors = file.factors("rope_freqs.weight", head_dim // 2)
    if factors is not None and scaled:
        raise CheckpointError(f"rope_freqs.weight comes with {kind} by {factor}; no other scaling was wanted beside it")
    if factors is not None:
        long = {"short_factor": factors, "long_factor": factors, "attention_factor": 1.0}
        return turns | {"rope_type": "longrope", **long, "original_max_position_embeddings": context}
    if not scaled:
        return turns
    if kind == "linear":
        return turns | {"rope_type": "linear", "factor": factor}
    given = {beta: value for beta, value in betas.items() if value is not None}
    return turns | {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **given}


def llama(file: Metadata) -> dict[str, Any]:
    file.require("tensor_data_layout", "Meta AI original pth")  # the interleaved rows that `undo` expects
    biases = {"attention_bias": file.has("blk.0.attn_q.bias"), "mlp_bias": file.has("blk.0.ffn_gate.bias")}
    return turning(file) | biases | {"hidden_act": "silu"}


def qwen2(file: Metadata) -> dict[str, Any]:
    return turning(file) | {"hidden_act": "silu"}


def qwen3(file: Metadata) -> dict[str, Any]:
    return qwen2(file) | {"attention_bias": file.has("blk.0.attn_q.bias")}


def gemma(file: Metadata, config: dict[str, Any], largest: int) -> dict[str, Any]:
    """What both Gemmas share; only the one with `largest` layers scales queries by more than a head's size."""
    heads = config["num_attention_heads"]
    is_largest = config["num_hidden_layers"] == largest
    return config | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": config["hidden_size"] // heads if is_largest else config["head_dim"],
        "final_logit_softcapping": file.get("final_logit_softcapping"),
        "sliding_window": file.positive("attention.sliding_window"),
    }


def gemma2(file: Metadata) -> dict[str, Any]:
    """Every second layer is global, which needs no saying in config.json either."""
    return gemma(file, turning(file), 46) | {"attn_logit_softcapping": file.get("attn_logit_softcapping")}


def gemma3(file: Metadata) -> dict[str, Any]:
    """Every sixth layer is global; the file's base and scaling are theirs, and those of local layers fixed."""
    config = gemma(file, turning(file), 62)
    local = {"rope_type": "default", "rope_theta": float(file.get("rope.freq_base_swa", default=10000.0))}
    layers = range(1, config["num_hidden_layers"] + 1)
    types = ["sliding_attention" if layer % 6 else "full_attention" for layer in layers]
    turns = {"full_attention": config["rope_parameters"], "sliding_attention": local}
    return config | {"rope_parameters": turns, "layer_types": types}


def phi3(file: Metadata) -> dict[str, Any]:
    """A part of each head may turn; LongRoPE's two sets of factors are tensors."""
    config = sizes(file)
    dim = file.get("rope.dimension_count", default=config["head_dim"])
    original = file.get("rope.scaling.original_context_length", default=config["max_position_embeddings"])
    turns = {
        "rope_theta": float(file.get("rope.freq_base", default=10000.0)),
        "partial_rotary_factor": dim / config["head_dim"],
    }
    short, long = (file.factors(f"rope_factors_{length}.weight", dim // 2) for length in ("short", "long"))
    warmth = file.get("rope.scaling.attn_factor", default=1.0)
    if short and long:
        turns |= {"rope_type": "longrope", "short_factor": short, "long_factor": long, "attention_factor": warmth}
        turns["original_max_position_embeddings"] = original
    elif short or long or warmth != 1.0:
        raise CheckpointError("LongRoPE needs rope_factors_short.weight and rope_factors_long.weight; one is missing")
    return config | {
        "hidden_act": "silu",
        "rope_parameters": turns,
        "original_max_position_embeddings": original,
        "sliding_window": file.get("attention.sliding_window") or None,  # 0 where there is none
    }


def gpt2(file: Metadata) -> dict[str, Any]:
    heads = file.positive("attention.head_count")
    file.require("attention.head_count_kv", heads)
    file.require("attention.causal", True)
    return {
        "n_embd": file.positive("embedding_length"),
        "n_inner": file.positive("feed_forward_length"),
        "n_layer": file.positive("block_count"),
        "n_head": heads,
        "n_positions": file.positive("context_length"),
        "layer_norm_epsilon": file.positive("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
    }


# ---- tensors --------------------------------------------------------------------------------------------------------


def undo_interleave(heads_field: str) -> Undo:
    """Rows from llama.cpp's order, where rotary partners are neighbours, to Hugging Face's, where they are halves."""

    def undo(value: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
        heads, size = config[heads_field], config["head_dim"]
        if len(value) != heads * size:
            raise CheckpointError(f"has {len(value)} rows, where {heads} heads of {size} were wanted")
        pairs = value.reshape(heads, size // 2, 2, *value.shape[1:])
        return pairs.swapaxes(1, 2).reshape(value.shape)

    return undo


def undo_transpose(value: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """GPT-2's linear maps are [in, out] at Hugging Face; biases have one axis, and stay."""
    return value.T


def undo_offset(value: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """Gemma's norms multiply by one more than their weight, and the file has that."""
    return value - 1


LAYER = "model.layers.{i}."
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ATTENTION = {f"blk.{{i}}.attn_{part}": f"{LAYER}self_attn.{part}_proj" for part in "qkv"}
QK_NORM = {f"blk.{{i}}.attn_{part}_norm": f"{LAYER}self_attn.{part}_norm" for part in "qk"}
MLP = {f"blk.{{i}}.ffn_{part}": f"{LAYER}mlp.{part}_proj" for part in ("gate", "up", "down")}
OUT = {"blk.{i}.attn_output": f"{LAYER}self_attn.o_proj"}
TWO_NORMS = {
    "blk.{i}.attn_norm": f"{LAYER}input_layernorm",
    "blk.{i}.ffn_norm": f"{LAYER}post_attention_layernorm",
}
FOUR_NORMS = {
    "blk.{i}.attn_norm": f"{LAYER}input_layernorm",
    "blk.{i}.post_attention_norm": f"{LAYER}post_attention_layernorm",
    "blk.{i}.ffn_norm": f"{LAYER}pre_feedforward_layernorm",
    "blk.{i}.post_ffw_norm": f"{LAYER}post_feedforward_layernorm",
}
FUSED = {"blk.{i}.attn_qkv": f"{LAYER}self_attn.qkv_proj", "blk.{i}.ffn_up": f"{LAYER}mlp.gate_up_proj"}
GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "blk.{i}.attn_norm": "transformer.h.{i}.ln_1",
    "blk.{i}.attn_qkv": "transformer.h.{i}.attn.c_attn",
    "blk.{i}.attn_output": "transformer.h.{i}.attn.c_proj",
    "blk.{i}.ffn_norm": "transformer.h.{i}.ln_2",
    "blk.{i}.ffn_up": "transformer.h.{i}.mlp.c_fc",
    "blk.{i}.ffn_down": "transformer.h.{i}.mlp.c_proj",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
BARE = {**TOP, **TWO_NORMS, **ATTENTION, **OUT, **MLP}
NORMS = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "attn_q_norm", "attn_k_norm", "output_norm")

ARCHITECTURES = {
    "llama": Architecture(
        "llama", llama, BARE,
        {"attn_q": undo_interleave("num_attention_heads"), "attn_k": undo_interleave("num_key_value_heads")},
    ),
    "qwen2": Architecture("qwen2", qwen2, BARE),
    "qwen3": Architecture("qwen3", qwen3, {**BARE, **QK_NORM}),
    "gemma2": Architecture("gemma2", gemma2, {**BARE, **FOUR_NORMS}, dict.fromkeys(NORMS, undo_offset)),
    "gemma3": Architecture(
        "gemma3_text", gemma3, {**BARE, **FOUR_NORMS, **QK_NORM}, dict.fromkeys(NORMS, undo_offset)
    ),
    "phi3": Architecture(
        "phi3", phi3, {**TOP, **TWO_NORMS, **OUT, **FUSED, "blk.{i}.ffn_down": f"{LAYER}mlp.down_proj"}
    ),
    "gpt2": Architecture(
        "gpt2", gpt2, GPT2, dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), undo_transpose)
    ),
}  # fmt: skip
