"""When each pass of weight processing is valid, and which weights it replaces by what."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from jaxlens.config import Config
from jaxlens.parameters import Params, parameter_axes
from jaxlens.weights import arithmetic

Leaves = Iterator[tuple[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a pass would do to a model: the config after it, and its new weights one at a time, from the present ones.

    Without `leaves` it does nothing, because there is nothing to do or, where it is not `valid`, because that would
    change what the model computes; `reason` says which.
    """

    cfg: Config
    leaves: Callable[[Params], Leaves] | None = None
    reason: str = ""
    valid: bool = True


READERS = {
    "ln1": ("attn.W_Q", "attn.W_K", "attn.W_V", "attn.W_Q_down", "attn.W_KV_down", "attn.W_K_rot"),
    "ln2": (
        "mlp.W_in", "mlp.W_gate", "mlp.W_router", "mlp.shared.W_in", "mlp.shared.W_gate", "mlp.W_shared_gate",
    ),
    "mlp.ln": ("mlp.W_out",),
}
"""The linear maps that read each norm of a block. A norm that two sublayers share feeds those of both."""

WRITERS = ("W_E", "W_pos", "W_O", "b_O", "W_out", "b_out")
"""What is written to the residual stream. W_E is not where a map from d_embed follows it, which is then."""


def _fold_ln(cfg: Config) -> Plan:
    if cfg.normalization_type not in ("LN", "RMS"):
        return Plan(cfg, reason="its norms are folded already" if cfg.normalization_type else "it has no norms")
    if cfg.positional_embedding_type == "shortformer":
        return Plan(cfg, valid=False, reason="positions are added between ln1 and the maps of queries and keys")
    if cfg.norm_placement == "sum":
        return Plan(cfg, valid=False, reason="nothing takes up the weights of norms that write to the residual stream")
    apart = cfg.replace(tie_word_embeddings=False)
    axes, readers = parameter_axes(apart), _readers(apart)
    biased = {weight for norm, weight in readers if f"{norm}.b" in axes}
    if any("e" in axes[weight].split() for weight in biased):
        return Plan(cfg, valid=False, reason="experts have no biases to take up the bias of ln2")
    if "unembed.W_proj" in biased:
        return Plan(cfg, valid=False, reason="the unembedding's map to d_embed has no bias to take up that of ln_final")

    def leaves(params: Params) -> Leaves:
        yield from _apart(cfg, params)
        for norm, weight in readers:
            letters, inner = axes[weight].split(), norm.endswith("mlp.ln")
            axis = letters.index(axes[f"{norm}.w"].split()[-1])
            if weight in biased:
                bias = params.get(_bias(weight))
                yield _bias(weight), arithmetic.fold_bias(params[weight], params[f"{norm}.b"], bias, axis)
            centre = inner or cfg.normalization_type == "LN"
            w, offset = params[f"{norm}.w"], cfg.rmsnorm_uses_offset
            yield weight, arithmetic.fold(params[weight], w, axis, centre, offset)

    outputs = cfg.norm_placement != "pre" or cfg.post_embedding_ln
    kept = [bias for bias in cfg.biases if bias != "norm" or outputs]
    made = [_bias(weight).rpartition(".")[2] for weight in biased]
    after = apart.replace(normalization_type=f"{cfg.normalization_type}Pre", biases=(*kept, *made))
    keeping = [name for name in ("ln1_post", "ln2_post", "embed.ln") if any(f".{name}.w" in f".{key}" for key in axes)]
    kept_ones = " and ".join(keeping)
    return Plan(after, leaves, f"{kept_ones} keep their weights: no linear map follows" if keeping else "")


def _readers(cfg: Config) -> list[tuple[str, str]]:
    """Every norm that linear maps read, with each of these, by name."""
    axes, table = parameter_axes(cfg), dict(READERS)
    if cfg.shared_norm:
        table["ln1"] += table["ln2"]
    pairs = [
        (f"blocks.{stack}.{norm}", f"blocks.{stack}.{weight}")
        for stack in cfg.stack_names
        for norm, weights in table.items()
        for weight in weights
    ]
    pairs.append(("ln_final", "unembed.W_proj" if cfg.d_embed else "unembed.W_U"))
    there = [(norm, weight) for norm, weight in pairs if f"{norm}.w" in axes and weight in axes]
    return [pair for pair in there if {*axes[f"{pair[0]}.w"].split()} <= {*axes[pair[1]].split()}]


def _apart(cfg: Config, params: Params) -> Leaves:
    """The unembedding of a tied model as a weight of its own."""
    if cfg.tie_word_embeddings:
        yield "unembed.W_U", arithmetic.transpose(params["embed.W_E"])


def _bias(weight: str) -> str:
    """blocks.*.attn.b_Q for blocks.*.attn.W_Q."""
    part, _, name = weight.rpartition(".")
    return f"{part}.b_{name.removeprefix('W_')}"


def _center_writing_weights(cfg: Config) -> Plan:
    if cfg.normalization_type not in ("LN", "LNPre"):
        reader = "an RMSNorm reads" if cfg.normalization_type else "linear maps read"
        return Plan(cfg, valid=False, reason=f"{reader} the residual stream with its mean")
    if cfg.norm_placement == "post":
        return Plan(cfg, valid=False, reason="attention and MLP read the residual stream itself, with its mean")
    if cfg.norm_placement == "both":
        return Plan(cfg, valid=False, reason="ln1_post and ln2_post write a mean to the residual stream")
    if cfg.norm_placement == "sum":
        return Plan(cfg, valid=False, reason="the norms of sums write a mean to the residual stream")
    if cfg.post_embedding_ln:
        return Plan(cfg, valid=False, reason="the norm of the embedding writes a mean to the residual stream")
    if cfg.positional_embedding_type == "sinusoidal":
        return Plan(cfg, valid=False, reason="sines and cosines of positions write a mean to the residual stream")
    elsewhere = {"pos_embed.W_pos"} if cfg.positional_embedding_type == "shortformer" else set()
    elsewhere |= {"embed.W_E"} if cfg.d_embed else set()
    writers = ("embed.W_proj", *(f".{writer}" for writer in WRITERS))
    written = [name for name in parameter_axes(cfg) if name.endswith(writers) and name not in elsewhere]

    def leaves(params: Params) -> Leaves:
        yield from _apart(cfg, params)
        for name in written:  # d_model is the last axis of all of them
            yield name, arithmetic.centre(params[name])

    return Plan(cfg.replace(tie_word_embeddings=False), leaves)


def _center_unembed(cfg: Config) -> Plan:
    if cfg.output_logits_soft_cap is not None:
        reason = "a soft cap on logits tells them from logits moved by a constant"
        return Plan(cfg, valid=False, reason=reason)

    def leaves(params: Params) -> Leaves:
        yield from _apart(cfg, params)
        yield "unembed.W_U", arithmetic.centre(params["unembed.W_U"])
        if "b_U" in cfg.biases:
            yield "unembed.b_U", arithmetic.centre(params["unembed.b_U"])

    return Plan(cfg.replace(tie_word_embeddings=False), leaves)


def _fold_value_biases(cfg: Config) -> Plan:
    if "b_V" not in cfg.biases:
        return Plan(cfg, reason="it has no value biases")
    if cfg.clip_qkv is not None:
        return Plan(cfg, valid=False, reason="values are clipped, with their biases (clip_qkv)")
    if cfg.attn_sinks:
        return Plan(cfg, valid=False, reason="with sinks a pattern does not sum to 1, so a value's bias is no constant")

    def leaves(params: Params) -> Leaves:
        for attn in (f"blocks.{stack}.attn" for stack in cfg.stack_names):
            b_V, b_O = params[f"{attn}.b_V"], params.get(f"{attn}.b_O")
            yield f"{attn}.b_O", arithmetic.fold_values(params[f"{attn}.W_O"], b_V, b_O)
            yield f"{attn}.b_V", jnp.zeros_like(b_V)

    return Plan(cfg.replace(biases=(*cfg.biases, "b_O")), leaves)


def _refactor_factored_attn_matrices(cfg: Config) -> Plan:
    if cfg.rotary_dim is not None:
        return Plan(cfg, valid=False, reason="queries and keys are turned by their positions (rotary)")
    if cfg.qk_norm is not None:
        return Plan(cfg, valid=False, reason="queries and keys are normalised (qk_norm)")
    if cfg.clip_qkv is not None:
        return Plan(cfg, valid=False, reason="queries, keys and values are clipped (clip_qkv)")
    if cfg.attn_sinks and "b_V" in cfg.biases:
        return Plan(cfg, valid=False, reason="with sinks a pattern does not sum to 1, so a value's bias is no constant")
    if cfg.n_key_value_heads != cfg.n_heads:
        return Plan(cfg, valid=False, reason=f"{cfg.n_heads} query heads share {cfg.n_key_value_heads} keys and values")
    values = _fold_value_biases(cfg)

    def leaves(params: Params) -> Leaves:
        yield from values.leaves(params) if values.leaves else ()
        for attn in (f"blocks.{stack}.attn" for stack in cfg.stack_names):
            names = [f"{attn}.{name}" for name in ("W_Q", "W_K", "b_Q", "b_K")]
            made = arithmetic.even_queries_and_keys(*map(params.get, names))
            yield from ((name, leaf) for name, leaf in zip(names, made, strict=True) if leaf is not None)
            names = [f"{attn}.{name}" for name in ("W_V", "W_O")]
            yield from zip(names, arithmetic.turn_values(*map(params.get, names)), strict=True)

    return Plan(values.cfg, leaves)


PASSES: dict[str, Callable[[Config], Plan]] = {
    "fold_ln": _fold_ln,
    "center_writing_weights": _center_writing_weights,
    "center_unembed": _center_unembed,
    "fold_value_biases": _fold_value_biases,
    "refactor_factored_attn_matrices": _refactor_factored_attn_matrices,
}
"""The passes in their order: centring W_U comes after the final norm has gone into it."""
