"""What families share in the layout of their tensors: the rules of Llama, of GPT-2, and of parts that many have."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jaxlens.config import Config
from jaxlens.convert.rules import Rule

Rules = Callable[[Config], Iterable[Rule]]

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
