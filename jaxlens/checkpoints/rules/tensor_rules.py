"""Rules for tensor layouts that several families share: those of Llama, of GPT-2, and of single modules.

`theirs` is the name of a tensor in the checkpoint, `ours` the name of a parameter in jaxlens.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jaxlens.checkpoints.rules.rule import Rule
from jaxlens.config import Config

Rules = Callable[[Config], Iterable[Rule]]
Names = tuple[str, str, str]

LAYER = "model.layers.{l}."
GPT_LAYER = "transformer.h.{l}."
GATE_UP_DOWN = ("gate_proj", "up_proj", "down_proj")
GATED_MLP_PATTERNS = {"gate": "m d -> d m", "in": "m d -> d m", "out": "d m -> m d"}
PRE_NORMS = {"input_layernorm": "ln1", "post_attention_layernorm": "ln2"}
POST_NORMS = {"post_attention_layernorm": "ln1_post", "post_feedforward_layernorm": "ln2_post"}
FOUR_NORMS = {
    "input_layernorm": "ln1", "post_attention_layernorm": "ln1_post", "pre_feedforward_layernorm": "ln2",
    "post_feedforward_layernorm": "ln2_post",
}  # fmt: skip


def attention_rules(
    cfg: Config, prefix: str = LAYER + "self_attn.", out: str = "o_proj", norm: str = "{short}_norm"
) -> Iterator[Rule]:
    """Separate projections q, k, v and o, their biases, and the norms of queries and keys.

    `norm` is the name of the norms: `{short}` is replaced by q or k, and `{long}` by query or key. If it contains
    `{{{heads}}}`, there is one tensor per head.
    """
    long_names = {"q": "query", "k": "key"}
    for letter, heads in (("q", "n"), ("k", "k"), ("v", "k")):
        ours, theirs = letter.upper(), f"{prefix}{letter}_proj"
        yield Rule(f"{theirs}.weight", f"blocks.{{l}}.attn.W_{ours}", f"({heads} h) d -> {heads} d h")
        if f"b_{ours}" in cfg.biases:
            yield Rule(f"{theirs}.bias", f"blocks.{{l}}.attn.b_{ours}", f"({heads} h) -> {heads} h")
        if cfg.qk_norm and letter in long_names:
            name = norm.format(short=letter, long=long_names[letter], heads=heads)
            yield from qk_norm_rules(cfg, prefix + name, letter, heads)
    yield from attn_out_rules(cfg, prefix + out)


def qk_norm_rules(cfg: Config, theirs: str, letter: str, heads: str) -> Iterator[Rule]:
    """The norm of queries or keys (`letter`: "q" or "k"). `heads` is the letter of their head axis."""
    pattern = {"head": "h", "heads": f"{heads} h", "full": f"({heads} h) -> {heads} h"}[cfg.qk_norm]
    pattern = "h" if f"{{{heads}}}" in theirs else pattern
    yield Rule(f"{theirs}.weight", f"blocks.{{l}}.attn.{letter}_norm.w", pattern)
    if cfg.qk_norm_type == "LN" and "qk_norm" in cfg.biases:
        yield Rule(f"{theirs}.bias", f"blocks.{{l}}.attn.{letter}_norm.b", pattern)


def fused_qkv_rules(
    cfg: Config, theirs: str, pattern: str, letters: str = "QKV", split: tuple[str, ...] = (), each: str = "",
    **own: int,
) -> Iterator[Rule]:  # fmt: skip
    """Queries, keys and values in one tensor, in the order of `letters`. The other arguments are those of `Rule`."""

    def targets(kind: str) -> tuple[str, ...]:
        return tuple(f"blocks.{{l}}.attn.{kind}_{letter}" for letter in letters)

    yield Rule(f"{theirs}.weight", targets("W"), pattern, split, each, own=own)
    if "b_Q" in cfg.biases:
        pattern, each = (" ".join(axis for axis in axes.split() if axis != "d") for axes in (pattern, each))
        yield Rule(f"{theirs}.bias", targets("b"), pattern, split, each, own=own)


def attn_out_rules(cfg: Config, theirs: str) -> Iterator[Rule]:
    """The output projection of attention as a linear layer, and its bias."""
    yield Rule(f"{theirs}.weight", "blocks.{l}.attn.W_O", "d (n h) -> n h d")
    if "b_O" in cfg.biases:
        yield Rule(f"{theirs}.bias", "blocks.{l}.attn.b_O", "d")


def gated_mlp_rules(cfg: Config, prefix: str = LAYER + "mlp.", names: Names = GATE_UP_DOWN) -> Iterator[Rule]:
    """A gated MLP, (act(x gate) * (x up)) down, in the layers without experts. `names` are those of gate, up, down."""
    dense = dense_layers(cfg)
    for theirs, (ours, pattern) in zip(names, GATED_MLP_PATTERNS.items(), strict=True):
        yield Rule(f"{prefix}{theirs}.weight", f"blocks.{{l}}.mlp.W_{ours}", pattern, layers=dense)
        if f"b_{ours}" in cfg.biases:
            yield Rule(f"{prefix}{theirs}.bias", f"blocks.{{l}}.mlp.b_{ours}", pattern[0], layers=dense)


def expert_rules(cfg: Config, prefix: str = LAYER + "mlp.", names: Names = GATE_UP_DOWN) -> Iterator[Rule]:
    """A router, and separate tensors for the gated MLP of each expert, in the layers with experts."""
    layers = expert_layers(cfg)
    yield Rule(f"{prefix}gate.weight", "blocks.{l}.mlp.W_router", "e d -> d e", layers=layers)
    for theirs, (ours, pattern) in zip(names, GATED_MLP_PATTERNS.items(), strict=True):
        theirs, pattern = f"{prefix}experts.{{e}}.{theirs}.weight", pattern.replace("m", "f")
        yield Rule(theirs, f"blocks.{{l}}.mlp.W_{ours}", pattern, layers=layers)


def shared_expert_rules(cfg: Config, prefix: str = LAYER + "mlp.shared_expert.") -> Iterator[Rule]:
    """The shared expert, which every token uses."""
    for theirs, (ours, pattern) in zip(GATE_UP_DOWN, GATED_MLP_PATTERNS.items(), strict=True):
        ours, pattern = f"blocks.{{l}}.mlp.shared.W_{ours}", pattern.replace("m", "x")
        yield Rule(f"{prefix}{theirs}.weight", ours, pattern, layers=expert_layers(cfg))


def expert_layers(cfg: Config) -> tuple[int, ...]:
    """The layers whose MLP is a mixture of experts."""
    return tuple(layer for layer, has_experts in enumerate(cfg.moe_layers) if has_experts)


def dense_layers(cfg: Config) -> tuple[int, ...] | None:
    """The layers whose MLP is not a mixture of experts. None stands for all layers."""
    layers = tuple(layer for layer, has_experts in enumerate(cfg.moe_layers) if not has_experts)
    return layers if cfg.moe_layers else None


def fused_mlp_rules(cfg: Config, prefix: str = LAYER + "mlp.") -> Iterator[Rule]:
    """A gated MLP with gate and up in one tensor."""
    fused = ("blocks.{l}.mlp.W_gate", "blocks.{l}.mlp.W_in")
    yield Rule(f"{prefix}gate_up_proj.weight", fused, "(two m) d -> two d m")
    yield Rule(f"{prefix}down_proj.weight", "blocks.{l}.mlp.W_out", "d m -> m d")


def mlp_rules(
    cfg: Config, first: str, second: str, first_pattern: str = "m d -> d m", second_pattern: str = "d m -> m d"
) -> Iterator[Rule]:
    """An MLP without a gate: the linear layers `first` and `second`, and their biases."""
    for theirs, ours, pattern, bias in ((first, "in", first_pattern, "m"), (second, "out", second_pattern, "d")):
        yield Rule(f"{theirs}.weight", f"blocks.{{l}}.mlp.W_{ours}", pattern)
        if f"b_{ours}" in cfg.biases:
            yield Rule(f"{theirs}.bias", f"blocks.{{l}}.mlp.b_{ours}", bias)


def ungated_mlp_rules(cfg: Config) -> Iterator[Rule]:
    """An MLP without a gate, with the tensor names of Llama."""
    yield from mlp_rules(cfg, LAYER + "mlp.up_proj", LAYER + "mlp.down_proj")


def norm_rules(cfg: Config, theirs: str, ours: str) -> Iterator[Rule]:
    """The weight and the bias of a norm. There are none with normalization_type="LNPre"."""
    if cfg.normalization_type == "LNPre":
        return
    yield Rule(f"{theirs}.weight", f"{ours}.w", "d")
    if cfg.normalization_type == "LN" and "norm" in cfg.biases:
        yield Rule(f"{theirs}.bias", f"{ours}.b", "d")


def unembed_rules(cfg: Config, theirs: str = "lm_head") -> Iterator[Rule]:
    """The unembedding, unless it is tied to the embedding, and its bias."""
    if not cfg.tie_word_embeddings:
        yield Rule(f"{theirs}.weight", "unembed.W_U", "o w -> w o")
    if "b_U" in cfg.biases:
        yield Rule(f"{theirs}.bias", "unembed.b_U", "o")


def llama_rules(
    cfg: Config, norms: Mapping[str, str] = PRE_NORMS, attention: Rules = attention_rules, mlp: Rules = gated_mlp_rules
) -> Iterator[Rule]:
    """Every tensor of a Llama. The `norms` of a layer (theirs: ours), `attention` and `mlp` can be replaced."""
    yield Rule("model.embed_tokens.weight", "embed.W_E", "v d")
    for theirs, ours in norms.items():
        yield from norm_rules(cfg, f"{LAYER}{theirs}", f"blocks.{{l}}.{ours}")
    yield from attention(cfg)
    yield from mlp(cfg)
    yield from norm_rules(cfg, "model.norm", "ln_final")
    yield from unembed_rules(cfg)


def gpt_rules(cfg: Config) -> Iterator[Rule]:
    """The tensors that models like GPT-2 share: all except the projections of attention and MLP."""
    yield Rule("transformer.wte.weight", "embed.W_E", "v d")
    if cfg.positional_embedding_type == "standard":
        yield Rule("transformer.wpe.weight", "pos_embed.W_pos", "c d")
    yield from norm_rules(cfg, f"{GPT_LAYER}ln_1", "blocks.{l}.ln1")
    if not cfg.shared_norm:
        yield from norm_rules(cfg, f"{GPT_LAYER}ln_2", "blocks.{l}.ln2")
    yield from norm_rules(cfg, "transformer.ln_f", "ln_final")
    yield from unembed_rules(cfg)


def gpt_layer_rules(cfg: Config) -> Iterator[Rule]:
    """Attention and MLP of GPT (1) and GPT-2, whose linear layers have the input axis first."""
    theirs, ours = GPT_LAYER + "attn.", "blocks.{l}.attn."
    yield from fused_qkv_rules(cfg, theirs + "c_attn", "d (three n h) -> three n d h")
    yield Rule(theirs + "c_proj.weight", ours + "W_O", "(n h) d -> n h d")
    yield Rule(theirs + "c_proj.bias", ours + "b_O", "d")
    yield from mlp_rules(cfg, GPT_LAYER + "mlp.c_fc", GPT_LAYER + "mlp.c_proj", "d m", "m d")


def bloom_rules(
    cfg: Config, norms: Mapping[str, str] = PRE_NORMS, fused: str = "(n three h) d -> three n d h", **layout: Any
) -> Iterator[Rule]:
    """The tensors that BLOOM and Falcon share. `fused` and `layout` describe the tensor of queries, keys and values."""
    yield Rule("transformer.word_embeddings.weight", "embed.W_E", "v d")
    for theirs, ours in norms.items():
        yield from norm_rules(cfg, f"{GPT_LAYER}{theirs}", f"blocks.{{l}}.{ours}")
    yield from fused_qkv_rules(cfg, GPT_LAYER + "self_attention.query_key_value", fused, **layout)
    yield from attn_out_rules(cfg, GPT_LAYER + "self_attention.dense")
    yield from mlp_rules(cfg, GPT_LAYER + "mlp.dense_h_to_4h", GPT_LAYER + "mlp.dense_4h_to_h")
    yield from norm_rules(cfg, "transformer.ln_f", "ln_final")
    yield from unembed_rules(cfg)


def fairseq_rules(cfg: Config, prefix: str, final_norm: str, unembed: str = "lm_head") -> Iterator[Rule]:
    """Every tensor of a model trained with fairseq. All names except that of the unembedding start with `prefix`."""
    yield Rule(f"{prefix}embed_tokens.weight", "embed.W_E", "v w")
    if cfg.positional_embedding_type == "standard":
        table = ("pos_embed.W_before", "pos_embed.W_pos")
        yield Rule(f"{prefix}embed_positions.weight", table, "position d", split=("u", "c"))
    layer, norm = prefix + "layers.{l}.", "ln{}_sum" if cfg.norm_placement == "sum" else "ln{}"
    for i, theirs in enumerate(("self_attn_layer_norm", "final_layer_norm"), start=1):
        yield from norm_rules(cfg, layer + theirs, "blocks.{l}." + norm.format(i))
    yield from attention_rules(cfg, layer + "self_attn.", out="out_proj")
    yield from mlp_rules(cfg, layer + "fc1", layer + "fc2")
    if cfg.norm_placement == "pre":
        yield from norm_rules(cfg, prefix + final_norm, "ln_final")
    yield from unembed_rules(cfg, unembed)
