"""Every hook point of a model: its name, the axes of its value, what it is, and when it exists.

This table is the only list of hook points. The names that a model accepts, the order of its cache, the suggestions for
misspelled names, the position axis of every activation, and the documentation page are derived from it.

Axes: b batch, p (query) position, s source position, d d_model, n query head, k key/value head, h d_head, m d_mlp,
e expert, f d_expert, x d_shared_expert, t d_v_head, r q_lora_rank, z kv_lora_rank, o output vocabulary, 1 an axis of
length one.
"""

import dataclasses
import functools
from collections.abc import Callable

from jaxlens.config import Config

Condition = Callable[[Config, int], bool]


@dataclasses.dataclass(frozen=True)
class Site:
    """A row of the table: a hook point of the model, or of every block for which `exists` is true.

    An `on_request` site costs memory or time, or TransformerLens creates it only behind a flag. It runs only if a hook
    or a names_filter selects it, and an unfiltered cache does not contain it.
    """

    name: str
    axes: str
    meaning: str
    exists: Condition = lambda cfg, layer: True
    on_request: bool = False


# --- conditions


def _has_experts(cfg: Config, layer: int) -> bool:
    return cfg.block_kind(layer).mlp == "experts"


def _has_mlp(cfg: Config, layer: int) -> bool:
    return not cfg.attn_only


def _has_dense_mlp(cfg: Config, layer: int) -> bool:
    return cfg.block_kind(layer).mlp in ("plain", "gated")


def _has_gated_mlp(cfg: Config, layer: int) -> bool:
    return cfg.block_kind(layer).mlp == "gated"


def _is_sequential(cfg: Config, layer: int) -> bool:
    return not (cfg.attn_only or cfg.parallel_attn_mlp)


def _has_pos_embed(cfg: Config, layer: int) -> bool:
    return cfg.positional_embedding_type in ("standard", "shortformer", "sinusoidal")


def _has_norm_in_mlp(cfg: Config, layer: int) -> bool:
    return _has_dense_mlp(cfg, layer) and cfg.act_fn.endswith("_ln")


def _has_shared_expert(cfg: Config, layer: int) -> bool:
    return _has_experts(cfg, layer) and cfg.d_shared_expert is not None


def _has_shared_gate(cfg: Config, layer: int) -> bool:
    return cfg.shared_expert_gate


def _has_rotary(cfg: Config, layer: int) -> bool:
    return cfg.rotary_dim is not None


def _has_norm(*placements: str) -> Condition:
    return lambda cfg, layer: cfg.normalization_type is not None and cfg.norm_placement in placements


def _has_own_ln2(cfg: Config, layer: int) -> bool:
    return _has_mlp(cfg, layer) and not cfg.shared_norm and _has_norm("pre", "both")(cfg, layer)


def _has_output(cfg: Config, layer: int) -> bool:
    """Whether a norm with weights precedes attention and the MLP. Without weights, its output is hook_normalized."""
    return _has_norm("pre", "both")(cfg, layer) and cfg.normalization_type in ("LN", "RMS")


def _shares_output(cfg: Config, layer: int) -> bool:
    return _has_output(cfg, layer) and cfg.shared_norm


def _heads_read_residual(cfg: Config, layer: int) -> bool:
    """Whether every head reads the residual stream. In latent attention, heads read a shared latent."""
    return cfg.kv_lora_rank is None


def _ungrouped(cfg: Config, layer: int) -> bool:
    return cfg.n_heads == cfg.n_key_value_heads and _heads_read_residual(cfg, layer)


def _has_head(cfg: Config, layer: int) -> bool:
    return cfg.output_head is not None


def _adapts(weight: str) -> Condition:
    return lambda cfg, layer: weight in cfg.adapter


def _when(condition: Condition, rows: list[Site]) -> list[Site]:
    """The rows with an additional condition."""
    return [
        dataclasses.replace(row, exists=lambda cfg, layer, row=row: condition(cfg, layer) and row.exists(cfg, layer))
        for row in rows
    ]


# --- rows


def _norm_sites(module: str, axes: str, scale_axes: str, of: str, exists: Condition = Site.exists) -> list[Site]:
    return [
        Site(f"{module}.hook_scale", scale_axes, f"what {of} is divided by", exists),
        Site(f"{module}.hook_normalized", axes, f"{of}, divided; before weight and bias", exists),
    ]


def _qk_norm_sites(module: str, heads: str, of: str, after_rotary: bool) -> list[Site]:
    """The sites of a QK-norm. A norm of each head has one scale per head, a norm of all heads a single scale."""

    def has_norm(*kinds: str) -> Condition:
        return lambda cfg, layer: cfg.qk_norm in kinds and cfg.qk_norm_after_rotary == after_rotary

    return [
        *_norm_sites(module, f"b p {heads} h", f"b p {heads} 1", of, has_norm("head", "heads")),
        *_norm_sites(module, f"b p {heads} h", "b p 1 1", of, has_norm("full")),
    ]


EMBED_SITES = (
    Site("hook_tokens", "b p", "the tokens, as integers", on_request=True),
    *_norm_sites("embed.ln", "b p d", "b p 1", "the token embedding", lambda cfg, layer: cfg.post_embedding_ln),
    Site("hook_embed", "b p d", "the token embedding"),
    Site("hook_pos_embed", "b p d", "the position embedding; zero on padding", _has_pos_embed),
)

BLOCK_SITES = (
    Site("hook_resid_pre", "b p d", "the residual stream before the layer"),
    Site("hook_attn_in", "b p n d", "the input of each query head; before ln1", _ungrouped, True),
    Site("hook_q_input", "b p n d", "the input of each head's queries; before ln1", _heads_read_residual, True),
    Site("hook_k_input", "b p k d", "the input of each key head; before ln1", _heads_read_residual, True),
    Site("hook_v_input", "b p k d", "the input of each value head; before ln1", _heads_read_residual, True),
    *_norm_sites("ln1", "b p d", "b p 1", "the residual stream", _has_norm("pre", "both")),
    Site("ln1.hook_out", "b p d", "what attention reads: the output of ln1, after weight and bias", _has_output),
    Site("attn.hook_in", "b p d", "what attention reads, if the MLP reads the output of ln1 too", _shares_output),
    *_when(lambda cfg, layer: cfg.q_lora_rank is not None, [
        Site("attn.hook_q_latent", "b p r", "the latent that queries are computed from, before its norm"),
        *_norm_sites("attn.q_latent_norm", "b p r", "b p 1", "the latent of queries"),
    ]),
    Site("attn.lora_Q.hook_out", "b p n h", "what the adapter adds to queries", _adapts("W_Q")),
    Site("attn.hook_q", "b p n h", "queries, before QK-norm and rotation"),
    *_when(lambda cfg, layer: cfg.kv_lora_rank is not None, [
        Site("attn.hook_kv_latent", "b p z", "the latent that keys and values are computed from, before its norm"),
        *_norm_sites("attn.kv_latent_norm", "b p z", "b p 1", "the latent of keys and values"),
    ]),
    Site("attn.lora_K.hook_out", "b p k h", "what the adapter adds to keys", _adapts("W_K")),
    Site("attn.hook_k", "b p k h", "keys, before QK-norm and rotation; one per key/value head"),
    Site("attn.lora_V.hook_out", "b p k h", "what the adapter adds to values", _adapts("W_V")),
    Site("attn.hook_v", "b p k t", "values; one per key/value head"),
    *_qk_norm_sites("attn.q_norm", "n", "a query", after_rotary=False),
    Site("attn.hook_rot_q", "b p n h", "queries, rotated", _has_rotary),
    *_qk_norm_sites("attn.q_norm", "n", "a query", after_rotary=True),
    *_qk_norm_sites("attn.k_norm", "k", "a key", after_rotary=False),
    Site("attn.hook_rot_k", "b p k h", "keys, rotated", _has_rotary),
    *_qk_norm_sites("attn.k_norm", "k", "a key", after_rotary=True),
    Site("attn.hook_attn_scores", "b n p s", "scores after scale, cap and mask (-inf where masked)"),
    Site("attn.hook_pattern", "b n p s", "attention probabilities; rows sum to 1 (less with a sink), to 0 on padding"),
    Site("attn.hook_z", "b p n t", "the pattern-weighted sum of values, per head"),
    Site("attn.lora_O.hook_out", "b p d", "what the adapter adds to the output of all heads", _adapts("W_O")),
    Site("attn.hook_result", "b p n d", "what each head writes to the residual stream", on_request=True),
    *_norm_sites("ln1_post", "b p d", "b p 1", "attention's output", _has_norm("post", "both")),
    Site("hook_attn_out", "b p d", "what attention adds to the residual stream"),
    *_norm_sites("ln1_sum", "b p d", "b p 1", "the residual stream plus attention's output", _has_norm("sum")),
    Site("hook_resid_mid", "b p d", "the residual stream between attention and MLP", _is_sequential),
    Site("hook_mlp_in", "b p d", "the input of the MLP; before ln2", _has_mlp, True),
    *_norm_sites("ln2", "b p d", "b p 1", "the residual stream", _has_own_ln2),
    *_when(_has_own_ln2, [
        Site("ln2.hook_out", "b p d", "what the MLP reads: the output of ln2, after weight and bias", _has_output),
    ]),
    Site("mlp.hook_in", "b p d", "what the MLP reads, if attention reads the output of ln1 too", _shares_output),
    Site("mlp.hook_expert_weights", "b p e", "the router's probabilities, before the top k are chosen", _has_experts),
    Site("mlp.lora_gate.hook_out", "b p m", "what the adapter adds to the gate", _adapts("W_gate")),
    Site("mlp.lora_in.hook_out", "b p m", "what the adapter adds to the input of the activation function",
         lambda cfg, layer: _adapts("W_in")(cfg, layer) and not cfg.gated_mlp),
    Site("mlp.hook_pre", "b p m", "before the activation function (gated: the gate)", _has_dense_mlp),
    Site("mlp.lora_in.hook_out", "b p m", "what the adapter adds to the linear part",
         lambda cfg, layer: _adapts("W_in")(cfg, layer) and cfg.gated_mlp),
    Site("mlp.hook_pre_linear", "b p m", "the linear part, which the activated gate multiplies", _has_gated_mlp),
    Site("mlp.hook_pre", "b p e f", "every expert's gate, before the activation function", _has_experts, True),
    Site("mlp.hook_pre_linear", "b p e f", "every expert's linear part, which its gate multiplies", _has_experts, True),
    Site("mlp.hook_mid", "b p m", "after the activation function, before the norm that follows it", _has_norm_in_mlp),
    *_norm_sites("mlp.ln", "b p m", "b p 1", "the activations", _has_norm_in_mlp),
    Site("mlp.hook_post", "b p m", "the neurons: the input of W_out", _has_dense_mlp),
    Site("mlp.hook_post", "b p e f", "every expert's neurons", _has_experts, True),
    Site("mlp.lora_out.hook_out", "b p d", "what the adapter adds to the output of the MLP", _adapts("W_out")),
    *_when(_has_shared_expert, [
        Site("mlp.hook_shared_gate", "b p 1", "the gate that multiplies the shared expert's output", _has_shared_gate),
        Site("mlp.shared.hook_pre", "b p x", "the shared expert's gate, before the activation"),
        Site("mlp.shared.hook_pre_linear", "b p x", "the shared expert's linear part"),
        Site("mlp.shared.hook_post", "b p x", "the shared expert's neurons"),
    ]),
    *_when(_has_mlp, _norm_sites("ln2_post", "b p d", "b p 1", "the MLP's output", _has_norm("post", "both"))),
    Site("hook_mlp_out", "b p d", "what the MLP adds to the residual stream", _has_mlp),
    *_norm_sites("ln2_sum", "b p d", "b p 1", "the residual stream plus the MLP's output", _has_norm("sum")),
    Site("hook_resid_post", "b p d", "the residual stream after the layer"),
)  # fmt: skip

FINAL_SITES = (
    *_norm_sites("ln_final", "b p d", "b p 1", "the residual stream", _has_norm("pre", "post", "both")),
    Site("unembed.hook_in", "b p d", "the input of the unembedding"),
    Site("unembed.hook_out", "b p o", "the logits", _has_head),
)

POSITION_AXES = {site.name: site.axes.split().index("p") for site in EMBED_SITES + BLOCK_SITES + FINAL_SITES}
"""The axis of (query) positions by site, counted from the front, for a value with a batch axis."""

LENGTH_AXES = {
    site.name: tuple(axis for axis, letter in enumerate(site.axes.split()) if letter in "ps")
    for site in EMBED_SITES + BLOCK_SITES + FINAL_SITES
}
"""The axes that are as long as the sequence by site: positions of queries, and those of sources in patterns."""

RESID_PRE, RESID_POST = "hook_resid_pre", "hook_resid_post"
"""The first and the last site of a layer: the residual stream."""

BLOCK_NAMES = frozenset(site.name for site in BLOCK_SITES)
EMBED_NAMES = tuple(site.name for site in EMBED_SITES)
FINAL_NAMES = tuple(site.name for site in FINAL_SITES)

ALIASES = {
    "hook_in": "hook_resid_pre", "hook_out": "hook_resid_post",
    "attn.hook_in": "ln1.hook_out", "mlp.hook_in": "ln2.hook_out",
}  # fmt: skip
"""TransformerLens 4's names of sites. If attention and MLP share ln1, the last two names are sites of their own."""

SWITCHES = {
    "use_attn_result": ("attn.hook_result",), "use_attn_in": ("hook_attn_in",), "use_hook_mlp_in": ("hook_mlp_in",),
    "use_split_qkv_input": ("hook_q_input", "hook_k_input", "hook_v_input"), "use_hook_tokens": ("hook_tokens",),
}  # fmt: skip
"""The on-request sites that each switch of TransformerLens adds to unfiltered caches."""


@functools.cache
def sites(cfg: Config) -> dict[str, Site]:
    """Every hook point of a model by full name, in firing order.

    Example:
        >>> cfg = Config(n_layers=1, d_model=12, n_heads=3, d_head=5, d_vocab=50, n_ctx=16, attn_only=True)
        >>> [name for name in sites(cfg) if "resid" in name]
        ['blocks.0.hook_resid_pre', 'blocks.0.hook_resid_post']
    """
    table = {site.name: site for site in EMBED_SITES if site.exists(cfg, 0)}
    for layer in range(cfg.n_layers):
        table |= {f"blocks.{layer}.{site.name}": site for site in BLOCK_SITES if site.exists(cfg, layer)}
    return table | {site.name: site for site in FINAL_SITES if site.exists(cfg, 0)}
