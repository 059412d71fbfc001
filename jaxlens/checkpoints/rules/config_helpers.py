"""Helpers that read config.json: the fields that many families share, and the Configs of common architectures."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from jaxlens.checkpoints.rules.hf_config import Reader
from jaxlens.config import ACTIVATIONS, Config, Dynamic, Linear, Llama3, LongRope, Rotary, Scaling, Yarn

ACTIVATION_ALIASES = {"swish": "silu", "gelu_python": "gelu", "gelu_python_tanh": "gelu_pytorch_tanh"}
"""Activations that have two names in transformers: the alias, and the name in `Config.act_fn`."""

LAYER_TYPES = ("full_attention", "sliding_attention")


def activation(hf: Reader, name: str) -> str:
    """The activation in the field `name`, as `Config.act_fn` spells it."""
    value = hf(name)
    act_fn = ACTIVATION_ALIASES.get(value, value) if isinstance(value, str) else None
    if act_fn not in ACTIVATIONS:
        raise hf.refused(name, f"expected one of {', '.join(sorted({*ACTIVATIONS, *ACTIVATION_ALIASES}))}")
    return act_fn


def layer_values(hf: Reader, name: str, values: Mapping[Any, Any]) -> tuple[Any, ...]:
    """The entry of `values` for each layer. The field `name` lists the keys, one per layer."""
    labels = hf(name)
    if not isinstance(labels, list) or not all(isinstance(label, str | int) and label in values for label in labels):
        raise hf.refused(name, f"expected a list of {' and '.join(map(repr, values))}, one entry per layer")
    return tuple(values[label] for label in labels)


def layer_windows(hf: Reader) -> tuple[int | None, ...]:
    """The window of each layer, from `layer_types` and `sliding_window`."""
    window = hf.size("sliding_window", None)
    if window is None and "sliding_attention" in hf("layer_types"):
        raise hf.refused("sliding_window", "expected a window size, because layer_types contains sliding_attention")
    return layer_values(hf, "layer_types", {"full_attention": None, "sliding_attention": window})


def head_dim(hf: Reader) -> int:
    """The `head_dim` field, by default hidden_size // num_attention_heads."""
    return hf.size("head_dim", hf.size("hidden_size") // hf.size("num_attention_heads"))


def rotary_embedding(
    hf: Reader, rope: Reader | None = None, d_head: int | None = None, adjacent_pairs: bool = False
) -> Rotary:
    """The rotary embedding described by `rope_parameters`, or by its entry `rope` for one layer type.

    Families that may rotate only some dimensions of a head pass `d_head`. Otherwise `partial_rotary_factor` must be 1.
    """
    rope = rope or hf.inside("rope_parameters")
    hf("original_max_position_embeddings", None)  # marks the field as read; `_scaling` checks it if it has an effect
    for name in ("type", "finetuned"):
        rope(name, None)  # "type" is the older name of "rope_type", which transformers always fills in
    if d_head is None:
        dim = None
        for reader in (hf, rope):
            reader.expect("partial_rotary_factor", 1, because="this architecture rotates all dimensions of a head")
    else:
        fraction = rope.positive("partial_rotary_factor", 1)
        hf.expect("partial_rotary_factor", fraction, because="it must equal rope_parameters.partial_rotary_factor")
        dim = None if fraction == 1 else int(d_head * fraction)
    return Rotary(float(rope.positive("rope_theta")), dim, adjacent_pairs, _scaling(hf, rope))


def rotary_by_layer_type(hf: Reader) -> tuple[Rotary, ...]:
    """The rotary embedding of each layer, from `layer_types` and the `rope_parameters` of each type."""
    by_type = hf.inside("rope_parameters")
    rotary = {kind: rotary_embedding(hf, by_type.inside(kind)) for kind in LAYER_TYPES}
    for kind in rotary:
        by_type.inside(kind).expect("truncate", True, because="transformers ignores it in the entry of a layer type")
    return layer_values(hf, "layer_types", rotary)


def _scaling(hf: Reader, rope: Reader) -> Scaling | None:
    kind = rope("rope_type", "default")
    if kind == "default":
        return None
    if kind == "linear":
        return Linear(rope.positive("factor"))
    if kind == "dynamic":
        n_ctx = hf.size("max_position_embeddings")
        return Dynamic(_scaling_factor(rope, n_ctx), n_ctx)
    if kind not in ("llama3", "yarn", "longrope"):
        raise rope.refused("rope_type", "expected one of default, linear, dynamic, llama3, yarn, longrope")
    field = "original_max_position_embeddings"
    original = rope.size(field)
    hf.expect(field, original, because=f"it must equal rope_parameters.{field}")
    factor = _scaling_factor(rope, original, hf.size("max_position_embeddings") / original)
    if kind == "llama3":
        return Llama3(factor, rope.positive("low_freq_factor"), rope.positive("high_freq_factor"), original)
    if kind == "yarn":
        rope("attn_factor", None)  # a field of another package: transformers warns about it and does not use it
        return Yarn(
            factor=factor,
            original_n_ctx=original,
            attention_factor=_yarn_attention_factor(rope, factor),
            beta_fast=rope.number("beta_fast", 0) or 32.0,  # 0 means the default, as in transformers
            beta_slow=rope.number("beta_slow", 0) or 1.0,
            truncate=rope.flag("truncate", True),
        )
    default_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return LongRope(
        short_factor=rope.numbers("short_factor"), long_factor=rope.numbers("long_factor"), original_n_ctx=original,
        attention_factor=rope.number("attention_factor", default_factor),
    )  # fmt: skip


def _scaling_factor(rope: Reader, original: int, *default: float) -> float:
    """The field `factor`. `original` is the context before the scaling."""
    factor = rope.positive("factor", *default)
    if factor * original >= 2**31:
        raise rope.refused("factor", "expected a factor with which the context is shorter than 2^31")
    return factor


def scaled_context(hf: Reader, n_ctx: int, rotary: Rotary | Iterable[Rotary | None]) -> int:
    """The context length: `n_ctx`, or the longer one that a dynamic or LongRoPE scaling is made for.

    That is `factor` times the context before the scaling.
    """
    layers = (rotary,) if isinstance(rotary, Rotary) else rotary
    if not any(layer and isinstance(layer.scaling, Dynamic | LongRope) for layer in layers):
        return n_ctx
    rope, contexts = hf.inside("rope_parameters"), [n_ctx]
    for entry in [rope.inside(kind) for kind in LAYER_TYPES if rope(kind, None)] or [rope]:
        if entry("rope_type", "default") == "dynamic":
            contexts.append(int(entry.number("factor") * hf.size("max_position_embeddings")))
        elif entry("rope_type", "default") == "longrope":
            contexts.append(int(entry.number("factor", 1) * entry.size("original_max_position_embeddings")))
    return max(contexts)


def _yarn_attention_factor(rope: Reader, factor: float) -> float:
    """`attention_factor`. Default: yarn_mscale(mscale) / yarn_mscale(mscale_all_dim), else yarn_mscale(1)."""
    mscale, mscale_all_dim = rope.number("mscale", 0), rope.number("mscale_all_dim", 0)
    both = mscale and mscale_all_dim
    default = yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim) if both else yarn_mscale(factor, 1)
    return rope.number("attention_factor", default)


def yarn_mscale(factor: float, weight: float) -> float:
    """YaRN's factor on rotated queries and keys, 0.1 weight ln(factor) + 1 (Peng et al. 2023, section 3.4)."""
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def common_config(
    hf: Reader, n_layers: str = "num_hidden_layers", d_model: str = "hidden_size", n_heads: str = "num_attention_heads",
    **fields: Any,
) -> Config:  # fmt: skip
    """A Config with `fields`, and defaults for those common to all architectures.

    `n_layers`, `d_model` and `n_heads` are the names of these fields in config.json. `n_ctx` is increased to the
    context that the rotary scaling is made for.
    """
    fields["n_ctx"] = scaled_context(hf, fields["n_ctx"], fields.get("rotary", ()))
    width, heads = hf.size(d_model), hf.size(n_heads)
    defaults = {
        "n_layers": hf.size(n_layers), "d_model": width, "n_heads": heads, "d_head": width // heads,
        "d_vocab": hf.size("vocab_size"), "biases": ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "norm"),
        "tie_word_embeddings": hf.flag("tie_word_embeddings"),
    }  # fmt: skip
    return Config(**{**defaults, **fields})


def llama_config(
    hf: Reader, *, act_fn: str = "hidden_act", eps: str | float = "rms_norm_eps", **changes: Any
) -> Config:
    """The Config of a Llama, with `changes` to its fields.

    `act_fn` and `eps` are the names of these fields in config.json. `eps` may also be a number.
    """
    fields = {
        "n_key_value_heads": hf.size("num_key_value_heads", hf.size("num_attention_heads")), "d_head": head_dim(hf),
        "d_mlp": hf.size("intermediate_size"), "n_ctx": hf.size("max_position_embeddings"), "normalization_type": "RMS",
        "eps": hf.number(eps) if isinstance(eps, str) else eps, "act_fn": activation(hf, act_fn), "gated_mlp": True,
        "biases": (), "positional_embedding_type": "rotary", "rotary": changes.get("rotary") or rotary_embedding(hf),
    }  # fmt: skip
    return common_config(hf, **{**fields, **changes})


def gemma_config(hf: Reader, **changes: Any) -> Config:
    """The Config of Gemma 2 and 3: a Llama with four norms per block, unit offsets in norms, and a scaled embedding."""
    hf.expect("use_bidirectional_attention", False, because="jaxlens implements causal attention only")
    fields = {
        "act_fn": "hidden_activation", "biases": attention_biases(hf), "norm_placement": "both",
        "rmsnorm_uses_offset": True, "windows": layer_windows(hf),
        "attn_scale": math.sqrt(hf.size("query_pre_attn_scalar")),
        "output_logits_soft_cap": hf.positive("final_logit_softcapping", None),
        "embed_scale": math.sqrt(hf.size("hidden_size")),
    }  # fmt: skip
    return llama_config(hf, **fields, **changes)


def granite_config(hf: Reader, **changes: Any) -> Config:
    """The Config of a Granite: a Llama with scaled embedding, attention scores, block outputs and logits."""
    return llama_config(
        hf, embed_scale=hf.positive("embedding_multiplier"), attn_scale=1 / hf.positive("attention_multiplier"),
        residual_scale=hf.positive("residual_multiplier"), output_logits_scale=1 / hf.positive("logits_scaling"),
        **changes,
    )  # fmt: skip


def cohere_config(hf: Reader, **changes: Any) -> Config:
    """The Config of Cohere's models: a Llama with parallel attention and MLP behind one LayerNorm."""
    fields = {
        "eps": "layer_norm_eps", "normalization_type": "LN", "parallel_attn_mlp": True, "shared_norm": True,
        "biases": attention_biases(hf), "output_logits_scale": hf.positive("logit_scale"),
    }  # fmt: skip
    return llama_config(hf, **{**fields, **changes})


def gpt_config(hf: Reader, **changes: Any) -> Config:
    """The Config of a GPT-2, with `changes` to its fields."""
    fields = {
        "d_mlp": hf.size("n_inner", 4 * hf.size("n_embd")),
        "n_ctx": hf.size("n_positions"),
        "act_fn": changes.get("act_fn") or activation(hf, "activation_function"),
        "eps": hf.number("layer_norm_epsilon"),
    }
    return common_config(hf, "n_layer", "n_embd", "n_head", **{**fields, **changes})


def gptj_config(hf: Reader) -> Config:
    """The Config of GPT-J and CodeGen: parallel attention and MLP behind one norm, and adjacent rotary pairs."""
    hf.expect("scale_attn_weights", True, because="transformers' GPT-J and CodeGen support no other value")
    return gpt_config(
        hf, parallel_attn_mlp=True, shared_norm=True, positional_embedding_type="rotary",
        rotary=Rotary(dim=hf.size("rotary_dim"), adjacent_pairs=True), biases=("b_in", "b_out", "norm", "b_U"),
    )  # fmt: skip


def fairseq_config(
    hf: Reader, *, d_mlp: str = "ffn_dim", act_fn: str = "activation_function", **changes: Any
) -> Config:
    """The Config of models trained with fairseq. `d_mlp` and `act_fn` are the names of these fields in config.json.

    The first token uses row 2 of the position table. config.json does not contain the epsilon of the norms.
    """
    fields = {
        "d_mlp": hf.size(d_mlp), "n_ctx": hf.size("max_position_embeddings"), "act_fn": activation(hf, act_fn),
        "eps": 1e-5, "pos_offset": 2,
    }  # fmt: skip
    return common_config(hf, **{**fields, **changes})


def attention_biases(hf: Reader, letters: str = "QKVO") -> tuple[str, ...]:
    """The names of the attention biases in `Config.biases`. They depend on the field `attention_bias`."""
    return tuple(f"b_{letter}" for letter in letters) if hf.flag("attention_bias") else ()


def mlp_biases(hf: Reader, names: tuple[str, ...] = ("in", "gate", "out")) -> tuple[str, ...]:
    """The names of the MLP biases in `Config.biases`. They depend on the field `mlp_bias`."""
    return tuple(f"b_{name}" for name in names) if hf.flag("mlp_bias") else ()


def layers_with_experts(hf: Reader) -> tuple[bool, ...]:
    """Which layers have experts: every `decoder_sparse_step`-th layer, except `mlp_only_layers`."""
    step, dense = hf.size("decoder_sparse_step"), hf("mlp_only_layers", [])
    return tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(hf.size("num_hidden_layers")))
