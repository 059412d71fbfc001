"""What families share: reading the fields that many config.json have, and the rules of Llama's layout."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jaxlens.config import ACTIVATIONS, Config, Dynamic, Linear, Llama3, LongRope, Rotary, Scaling, Yarn
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Rule

Rules = Callable[[Config], Iterable[Rule]]

OTHER_NAMES = {"swish": "silu", "gelu_python": "gelu", "gelu_python_tanh": "gelu_pytorch_tanh"}
"""Activations that transformers knows by a second name."""

LAYER = "model.layers.{l}."
GPT_LAYER = "transformer.h.{l}."
GATE_UP_DOWN = ("gate_proj", "up_proj", "down_proj")
GATED_MAPS = {"gate": "m d -> d m", "in": "m d -> d m", "out": "d m -> m d"}
PRE_NORMS = {"input_layernorm": "ln1", "post_attention_layernorm": "ln2"}
POST_NORMS = {"post_attention_layernorm": "ln1_post", "post_feedforward_layernorm": "ln2_post"}
FOUR_NORMS = {
    "input_layernorm": "ln1",
    "post_attention_layernorm": "ln1_post",
    "pre_feedforward_layernorm": "ln2",
    "post_feedforward_layernorm": "ln2_post",
}


# ---- reading a config ---------------------------------------------------------------------------------------------


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


# ---- rules --------------------------------------------------------------------------------------------------------


def attention_rules(
    cfg: Config, within: str = LAYER + "self_attn.", out: str = "o_proj", norm: str = "{which}_norm"
) -> Iterator[Rule]:
    """Separate q, k, v and o projections, each with its bias where there is one, and the norms of queries and keys.

    `norm` is what those are called: `{which}` stands for q or k, `{word}` for query or key, and `{{{heads}}}` for a
    head that has one of its own.
    """
    words = {"q": "query", "k": "key"}
    for theirs, letter, heads in (("q", "Q", "n"), ("k", "K", "k"), ("v", "V", "k")):
        yield Rule(f"{within}{theirs}_proj.weight", f"blocks.{{l}}.attn.W_{letter}", f"({heads} h) d -> {heads} d h")
        if f"b_{letter}" in cfg.biases:
            yield Rule(f"{within}{theirs}_proj.bias", f"blocks.{{l}}.attn.b_{letter}", f"({heads} h) -> {heads} h")
        if cfg.qk_norm and theirs != "v":
            name = norm.format(which=theirs, word=words[theirs], heads=heads)
            yield from head_norm_rules(cfg, within + name, theirs, heads)
    yield from out_rules(cfg, within + out)


def head_norm_rules(cfg: Config, theirs: str, which: str, heads: str) -> Iterator[Rule]:
    """The norm of queries or keys (`which`: "q" or "k"), whose axis of heads is called `heads`."""
    pattern = {"head": "h", "heads": f"{heads} h", "full": f"({heads} h) -> {heads} h"}[cfg.qk_norm]
    pattern = "h" if f"{{{heads}}}" in theirs else pattern
    yield Rule(f"{theirs}.weight", f"blocks.{{l}}.attn.{which}_norm.w", pattern)
    if cfg.qk_norm_type == "LN" and "qk_norm" in cfg.biases:
        yield Rule(f"{theirs}.bias", f"blocks.{{l}}.attn.{which}_norm.b", pattern)


def fused_attention_rules(
    cfg: Config,
    theirs: str,
    pattern: str,
    letters: str = "QKV",
    split: tuple[str, ...] = (),
    each: str = "",
    **own: int,
) -> Iterator[Rule]:
    """Queries, keys and values in one tensor, in the order of `letters`, and their biases where there are any."""

    def named(kind: str) -> tuple[str, ...]:
        return tuple(f"blocks.{{l}}.attn.{kind}_{letter}" for letter in letters)

    yield Rule(f"{theirs}.weight", named("W"), pattern, split, each, own=own)
    if "b_Q" in cfg.biases:
        pattern, each = (" ".join(axis for axis in axes.split() if axis != "d") for axes in (pattern, each))
        yield Rule(f"{theirs}.bias", named("b"), pattern, split, each, own=own)


def out_rules(cfg: Config, theirs: str) -> Iterator[Rule]:
    """The projection of heads into the residual stream, where it is a linear map by itself."""
    yield Rule(f"{theirs}.weight", "blocks.{l}.attn.W_O", "d (n h) -> n h d")
    if "b_O" in cfg.biases:
        yield Rule(f"{theirs}.bias", "blocks.{l}.attn.b_O", "d")


def gated_mlp_rules(
    cfg: Config, within: str = LAYER + "mlp.", names: tuple[str, str, str] = GATE_UP_DOWN
) -> Iterator[Rule]:
    """gate, up and down, by their `names`: out = (act(x gate) * (x up)) down."""
    dense = dense_layers(cfg)
    for theirs, (ours, pattern) in zip(names, GATED_MAPS.items(), strict=True):
        yield Rule(f"{within}{theirs}.weight", f"blocks.{{l}}.mlp.W_{ours}", pattern, layers=dense)
        if f"b_{ours}" in cfg.biases:
            yield Rule(f"{within}{theirs}.bias", f"blocks.{{l}}.mlp.b_{ours}", pattern[0], layers=dense)


def expert_rules(
    cfg: Config, within: str = LAYER + "mlp.", names: tuple[str, str, str] = GATE_UP_DOWN
) -> Iterator[Rule]:
    """A router and experts, each a gated MLP of its own, in the layers that mix experts."""
    mixing = mixing_layers(cfg)
    yield Rule(f"{within}gate.weight", "blocks.{l}.mlp.W_router", "e d -> d e", layers=mixing)
    for theirs, (ours, pattern) in zip(names, GATED_MAPS.items(), strict=True):
        theirs, pattern = f"{within}experts.{{e}}.{theirs}.weight", pattern.replace("m", "f")
        yield Rule(theirs, f"blocks.{{l}}.mlp.W_{ours}", pattern, layers=mixing)


def shared_expert_rules(
    cfg: Config, within: str = LAYER + "mlp.shared_expert.", names: tuple[str, str, str] = GATE_UP_DOWN
) -> Iterator[Rule]:
    """The expert that answers every token."""
    for theirs, (ours, pattern) in zip(names, GATED_MAPS.items(), strict=True):
        ours, pattern = f"blocks.{{l}}.mlp.shared.W_{ours}", pattern.replace("m", "x")
        yield Rule(f"{within}{theirs}.weight", ours, pattern, layers=mixing_layers(cfg))


def mixing_layers(cfg: Config) -> tuple[int, ...]:
    """The layers whose MLP is a mixture of experts."""
    return tuple(layer for layer, mixes in enumerate(cfg.moe_layers) if mixes)


def dense_layers(cfg: Config) -> tuple[int, ...] | None:
    """The layers whose MLP is no mixture of experts; None: all."""
    return tuple(layer for layer, mixes in enumerate(cfg.moe_layers) if not mixes) if cfg.moe_layers else None


def fused_gated_mlp_rules(cfg: Config, within: str = LAYER + "mlp.") -> Iterator[Rule]:
    """The same with gate and up in one tensor."""
    both = ("blocks.{l}.mlp.W_gate", "blocks.{l}.mlp.W_in")
    yield Rule(f"{within}gate_up_proj.weight", both, "(two m) d -> two d m")
    yield Rule(f"{within}down_proj.weight", "blocks.{l}.mlp.W_out", "d m -> m d")


def mlp_rules(
    cfg: Config, first: str, second: str, wide: str = "m d -> d m", narrow: str = "d m -> m d"
) -> Iterator[Rule]:
    """An MLP of two linear maps, each with its bias where there is one."""
    for theirs, ours, pattern, length in ((first, "in", wide, "m"), (second, "out", narrow, "d")):
        yield Rule(f"{theirs}.weight", f"blocks.{{l}}.mlp.W_{ours}", pattern)
        if f"b_{ours}" in cfg.biases:
            yield Rule(f"{theirs}.bias", f"blocks.{{l}}.mlp.b_{ours}", length)


def up_down_rules(cfg: Config) -> Iterator[Rule]:
    """An MLP in a Llama's place that has no gate."""
    yield from mlp_rules(cfg, LAYER + "mlp.up_proj", LAYER + "mlp.down_proj")


def norm_rules(cfg: Config, theirs: str, ours: str) -> Iterator[Rule]:
    if cfg.normalization_type == "LNPre":  # a LayerNorm without weights
        return
    yield Rule(f"{theirs}.weight", f"{ours}.w", "d")
    if cfg.normalization_type == "LN" and "norm" in cfg.biases:
        yield Rule(f"{theirs}.bias", f"{ours}.b", "d")


def unembed_rules(cfg: Config, theirs: str = "lm_head") -> Iterator[Rule]:
    if not cfg.tie_word_embeddings:
        yield Rule(f"{theirs}.weight", "unembed.W_U", "o w -> w o")
    if "b_U" in cfg.biases:
        yield Rule(f"{theirs}.bias", "unembed.b_U", "o")


def llama_rules(
    cfg: Config,
    norms: Mapping[str, str] = PRE_NORMS,
    attention: Rules = attention_rules,
    mlp: Rules = gated_mlp_rules,
) -> Iterator[Rule]:
    """Every tensor of a Llama, and of what differs from one in its attention, its MLP or its `norms` (of a layer,
    theirs and ours)."""
    yield Rule("model.embed_tokens.weight", "embed.W_E", "v d")
    for theirs, ours in norms.items():
        yield from norm_rules(cfg, f"{LAYER}{theirs}", f"blocks.{{l}}.{ours}")
    yield from attention(cfg)
    yield from mlp(cfg)
    yield from norm_rules(cfg, "model.norm", "ln_final")
    yield from unembed_rules(cfg)


def gpt_rules(cfg: Config) -> Iterator[Rule]:
    """Every tensor that GPT-2 and its kin have in common: all but the projections of attention and MLP."""
    yield Rule("transformer.wte.weight", "embed.W_E", "v d")
    if cfg.positional_embedding_type == "standard":
        yield Rule("transformer.wpe.weight", "pos_embed.W_pos", "c d")
    yield from norm_rules(cfg, f"{GPT_LAYER}ln_1", "blocks.{l}.ln1")
    if not cfg.shared_norm:
        yield from norm_rules(cfg, f"{GPT_LAYER}ln_2", "blocks.{l}.ln2")
    yield from norm_rules(cfg, "transformer.ln_f", "ln_final")
    yield from unembed_rules(cfg)


def gpt_layer_rules(cfg: Config) -> Iterator[Rule]:
    """Attention and MLP of the GPTs of OpenAI, whose linear maps are stored with inputs first."""
    theirs, ours = GPT_LAYER + "attn.", "blocks.{l}.attn."
    yield from fused_attention_rules(cfg, theirs + "c_attn", "d (three n h) -> three n d h")
    yield Rule(theirs + "c_proj.weight", ours + "W_O", "(n h) d -> n h d")
    yield Rule(theirs + "c_proj.bias", ours + "b_O", "d")
    yield from mlp_rules(cfg, GPT_LAYER + "mlp.c_fc", GPT_LAYER + "mlp.c_proj", wide="d m", narrow="m d")


def bloom_rules(
    cfg: Config,
    norms: Mapping[str, str] = PRE_NORMS,
    fused: str = "(n three h) d -> three n d h",
    **layout: Any,
) -> Iterator[Rule]:
    """Every tensor that BLOOM and Falcon have in common; queries, keys and values lie in one, as `fused` and `layout`
    say."""
    yield Rule("transformer.word_embeddings.weight", "embed.W_E", "v d")
    for theirs, ours in norms.items():
        yield from norm_rules(cfg, f"{GPT_LAYER}{theirs}", f"blocks.{{l}}.{ours}")
    yield from fused_attention_rules(cfg, GPT_LAYER + "self_attention.query_key_value", fused, **layout)
    yield from out_rules(cfg, GPT_LAYER + "self_attention.dense")
    yield from mlp_rules(cfg, GPT_LAYER + "mlp.dense_h_to_4h", GPT_LAYER + "mlp.dense_4h_to_h")
    yield from norm_rules(cfg, "transformer.ln_f", "ln_final")
    yield from unembed_rules(cfg)


def fairseq_rules(cfg: Config, within: str, final_norm: str, unembed: str = "lm_head") -> Iterator[Rule]:
    """Every tensor of a model trained with fairseq."""
    yield Rule(f"{within}embed_tokens.weight", "embed.W_E", "v w")
    if cfg.positional_embedding_type == "standard":
        table = ("pos_embed.W_before", "pos_embed.W_pos")
        yield Rule(f"{within}embed_positions.weight", table, "position d", split=("u", "c"))
    layer, norm = within + "layers.{l}.", "ln{}_sum" if cfg.norm_placement == "sum" else "ln{}"
    for i, theirs in enumerate(("self_attn_layer_norm", "final_layer_norm"), start=1):
        yield from norm_rules(cfg, layer + theirs, "blocks.{l}." + norm.format(i))
    yield from attention_rules(cfg, layer + "self_attn.", out="out_proj")
    yield from mlp_rules(cfg, layer + "fc1", layer + "fc2")
    if cfg.norm_placement == "pre":
        yield from norm_rules(cfg, within + final_norm, "ln_final")
    yield from unembed_rules(cfg, unembed)
