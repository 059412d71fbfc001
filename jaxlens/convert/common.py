"""What families share in reading config.json: the fields that many of them have."""

import math
from collections.abc import Mapping
from typing import Any

from jaxlens.config import ACTIVATIONS, Config, Dynamic, Linear, Llama3, LongRope, Rotary, Scaling, Yarn
from jaxlens.convert.reader import Reader

OTHER_NAMES = {"swish": "silu", "gelu_python": "gelu", "gelu_python_tanh": "gelu_pytorch_tanh"}
"""Activations that transformers knows by a second name."""


def activation(hf: Reader, name: str) -> str:
    """The activation that a field names, by its name in `Config.act_fn`."""
    known = OTHER_NAMES.get(hf(name), hf(name)) if isinstance(hf(name), str) else None
    if known not in ACTIVATIONS:
        raise hf.refused(name, f"the activations are {', '.join(sorted({*ACTIVATIONS, *OTHER_NAMES}))}")
    return known


def per_layer(hf: Reader, name: str, meanings: Mapping[Any, Any]) -> tuple[Any, ...]:
    """What the words (or numbers) of a list with one entry per layer mean."""
    words = hf(name)
    if not isinstance(words, list) or not all(isinstance(word, str | int) and word in meanings for word in words):
        raise hf.refused(name, f"a list of {' and '.join(map(repr, meanings))} is wanted")
    return tuple(meanings[word] for word in words)


def windows(hf: Reader) -> tuple[int | None, ...]:
    """The window of each layer, from `layer_types` and `sliding_window`."""
    width = hf.size("sliding_window", None)
    if width is None and "sliding_attention" in hf("layer_types"):
        raise hf.refused("sliding_window", "layer_types has sliding_attention, which needs a window")
    return per_layer(hf, "layer_types", {"full_attention": None, "sliding_attention": width})


def head_size(hf: Reader) -> int:
    return hf.size("head_dim", hf.size("hidden_size") // hf.size("num_attention_heads"))


def rotary(hf: Reader, rope: Reader | None = None, d_head: int | None = None, adjacent_pairs: bool = False) -> Rotary:
    """The rotary embedding that `rope_parameters` (or one layer type's part of them, `rope`) describes.

    `d_head` is given by families that may turn a part of each head only; the others always turn the whole.
    """
    rope = rope or hf.inside("rope_parameters")
    hf("original_max_position_embeddings", None)  # matters to some scalings only, which look at it themselves
    for note in ("type", "finetuned"):
        rope(note, None)  # "type" is the older spelling of "rope_type", which is always there by now
    if d_head is None:
        dim = None
        for place in (hf, rope):
            place.expect("partial_rotary_factor", 1, because="this architecture turns whole heads")
    else:
        share = rope.positive("partial_rotary_factor", 1)
        hf.expect("partial_rotary_factor", share, because="rope_parameters says so")
        dim = None if share == 1 else int(d_head * share)
    return Rotary(float(rope.positive("rope_theta")), dim, adjacent_pairs, _scaling(hf, rope))


def rotary_by_layer_type(hf: Reader) -> tuple[Rotary, ...]:
    """The rotary embedding of each layer, where global and local layers have their own."""
    kinds = hf.inside("rope_parameters")
    turns = {kind: rotary(hf, kinds.inside(kind)) for kind in ("full_attention", "sliding_attention")}
    for kind in turns:
        kinds.inside(kind).expect("truncate", True, because="transformers looks for it elsewhere")
    return per_layer(hf, "layer_types", turns)


def _scaling(hf: Reader, rope: Reader) -> Scaling | None:
    kind = rope("rope_type", "default")
    if kind == "default":
        return None
    if kind == "linear":
        return Linear(rope.positive("factor"))
    if kind == "dynamic":
        return Dynamic(rope.positive("factor"), hf.size("max_position_embeddings"))
    if kind not in ("llama3", "yarn", "longrope"):
        raise rope.refused("rope_type", "the kinds are default, linear, dynamic, llama3, yarn, longrope")
    original = rope.size("original_max_position_embeddings")
    hf.expect("original_max_position_embeddings", original, because="rope_parameters says so")
    factor = rope.positive("factor", hf.size("max_position_embeddings") / original)
    if kind == "llama3":
        return Llama3(factor, rope.positive("low_freq_factor"), rope.positive("high_freq_factor"), original)
    if kind == "yarn":
        rope("attn_factor", None)  # of another package; transformers warns of it, and computes without it
        return Yarn(
            factor=factor,
            original_n_ctx=original,
            attention_factor=_yarn_attention_factor(rope, factor),
            beta_fast=rope.number("beta_fast", 0) or 32.0,  # zero counts as left out, as in transformers
            beta_slow=rope.number("beta_slow", 0) or 1.0,
            truncate=rope.flag("truncate", True),
        )
    stretched = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return LongRope(
        short_factor=rope.numbers("short_factor"),
        long_factor=rope.numbers("long_factor"),
        original_n_ctx=original,
        attention_factor=rope.number("attention_factor", stretched),
    )


def _yarn_attention_factor(rope: Reader, factor: float) -> float:
    """0.1 ln(factor) + 1 (Peng et al. 2023, section 3.4), or the ratio of two such terms with weights of their own."""

    def warmth(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    mscale, mscale_all_dim = rope.number("mscale", 0), rope.number("mscale_all_dim", 0)
    ratio = warmth(mscale) / warmth(mscale_all_dim) if mscale and mscale_all_dim else warmth(1)
    return rope.number("attention_factor", ratio)


def llama_config(
    hf: Reader, *, act_fn: str = "hidden_act", eps: str | float = "rms_norm_eps", **changes: Any
) -> Config:
    """The Config of a Llama and of what differs from one by `changes`; `act_fn` and `eps` are the fields that say what
    the activation and the norms' epsilon are, or the latter itself."""
    n_heads = hf.size("num_attention_heads")
    fields = {
        "n_layers": hf.size("num_hidden_layers"),
        "d_model": hf.size("hidden_size"),
        "n_heads": n_heads,
        "n_key_value_heads": hf.size("num_key_value_heads", n_heads),
        "d_head": head_size(hf),
        "d_mlp": hf.size("intermediate_size"),
        "d_vocab": hf.size("vocab_size"),
        "n_ctx": hf.size("max_position_embeddings"),
        "normalization_type": "RMS",
        "eps": hf.number(eps) if isinstance(eps, str) else eps,
        "act_fn": activation(hf, act_fn),
        "gated_mlp": True,
        "biases": (),
        "positional_embedding_type": "rotary",
        "tie_word_embeddings": hf.flag("tie_word_embeddings"),
    }
    return Config(**{**fields, "rotary": changes.get("rotary") or rotary(hf), **changes})


def gemma_config(hf: Reader, **changes: Any) -> Config:
    """The Config that Gemma 2 and 3 share: a Llama with four norms a block, unit offsets and scales of its own."""
    hf.expect("use_bidirectional_attention", False, because="attention here is causal")
    fields = {
        "act_fn": "hidden_activation",
        "biases": attention_biases(hf),
        "norm_placement": "both",
        "rmsnorm_uses_offset": True,
        "windows": windows(hf),
        "attn_scale": math.sqrt(hf.size("query_pre_attn_scalar")),
        "output_logits_soft_cap": hf.positive("final_logit_softcapping", None),
        "embed_scale": math.sqrt(hf.size("hidden_size")),
    }
    return llama_config(hf, **fields, **changes)


def granite_config(hf: Reader, **changes: Any) -> Config:
    """The Config that Granites share: a Llama with scales of embedding, scores, outputs of blocks, and logits."""
    return llama_config(
        hf,
        embed_scale=hf.positive("embedding_multiplier"),
        attn_scale=1 / hf.positive("attention_multiplier"),
        residual_scale=hf.positive("residual_multiplier"),
        output_logits_scale=1 / hf.positive("logits_scaling"),
        **changes,
    )


def cohere_config(hf: Reader, **changes: Any) -> Config:
    """The Config that Cohere's models share: a Llama with attention and MLP side by side behind one LayerNorm."""
    fields = {
        "eps": "layer_norm_eps",
        "normalization_type": "LN",
        "parallel_attn_mlp": True,
        "shared_norm": True,
        "biases": attention_biases(hf),
        "output_logits_scale": hf.positive("logit_scale"),
    }
    return llama_config(hf, **{**fields, **changes})


def gpt_config(hf: Reader, **changes: Any) -> Config:
    """The Config of a GPT-2 and of what differs from one by `changes`."""
    d_model, n_heads = hf.size("n_embd"), hf.size("n_head")
    fields = {
        "n_layers": hf.size("n_layer"),
        "d_model": d_model,
        "n_heads": n_heads,
        "d_head": d_model // n_heads,
        "d_mlp": hf.size("n_inner", 4 * d_model),
        "d_vocab": hf.size("vocab_size"),
        "n_ctx": hf.size("n_positions"),
        "act_fn": changes.get("act_fn") or activation(hf, "activation_function"),
        "eps": hf.number("layer_norm_epsilon"),
        "biases": ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "norm"),
        "tie_word_embeddings": hf.flag("tie_word_embeddings"),
    }
    return Config(**{**fields, **changes})


def gptj_config(hf: Reader) -> Config:
    """The Config that GPT-J and CodeGen share: both sublayers read one norm, neighbouring dimensions turn together."""
    hf.expect("scale_attn_weights", True, because="transformers' GPT-J and CodeGen always do so")
    return gpt_config(
        hf,
        parallel_attn_mlp=True,
        shared_norm=True,
        positional_embedding_type="rotary",
        rotary=Rotary(dim=hf.size("rotary_dim"), adjacent_pairs=True),
        biases=("b_in", "b_out", "norm", "b_U"),
    )


def fairseq_config(
    hf: Reader,
    *,
    n_layers: str = "num_hidden_layers",
    d_model: str = "hidden_size",
    n_heads: str = "num_attention_heads",
    d_mlp: str = "ffn_dim",
    act_fn: str = "activation_function",
    **changes: Any,
) -> Config:
    """The Config that models share which were trained with fairseq; the first arguments are what its fields are called
    in theirs. Two rows stand before the positions, and the epsilon of norms is in no config."""
    width, heads = hf.size(d_model), hf.size(n_heads)
    fields = {
        "n_layers": hf.size(n_layers),
        "d_model": width,
        "n_heads": heads,
        "d_head": width // heads,
        "d_mlp": hf.size(d_mlp),
        "d_vocab": hf.size("vocab_size"),
        "n_ctx": hf.size("max_position_embeddings"),
        "act_fn": activation(hf, act_fn),
        "eps": 1e-5,
        "biases": ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "norm"),
        "pos_offset": 2,
        "tie_word_embeddings": hf.flag("tie_word_embeddings"),
    }
    return Config(**{**fields, **changes})


def attention_biases(hf: Reader, letters: str = "QKVO") -> tuple[str, ...]:
    return tuple(f"b_{letter}" for letter in letters) if hf.flag("attention_bias") else ()


def mlp_biases(hf: Reader, maps: tuple[str, ...] = ("in", "gate", "out")) -> tuple[str, ...]:
    return tuple(f"b_{name}" for name in maps) if hf.flag("mlp_bias") else ()


def every_so_many_layers(hf: Reader) -> tuple[bool, ...]:
    """The layers that mix experts, where they are every so many (`decoder_sparse_step`) but for some
    (`mlp_only_layers`)."""
    every, dense = hf.size("decoder_sparse_step"), hf("mlp_only_layers", [])
    return tuple(layer not in dense and (layer + 1) % every == 0 for layer in range(hf.size("num_hidden_layers")))
