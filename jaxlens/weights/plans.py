"""The passes of weight processing: when each is valid, and which weights it replaces."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from jaxlens.config import Config
from jaxlens.nn.parameters import Params, parameter_axes
from jaxlens.weights import arithmetic

NewWeights = Iterator[tuple[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The effect of a pass on a model.

    `cfg` is the config after the pass. `weights` takes the parameters and yields the new weights, one at a time; it is
    None if the pass does nothing. `valid` is False if the pass would change what the model computes. `reason` explains
    why nothing is done, or which weights are left unchanged.
    """

    cfg: Config
    weights: Callable[[Params], NewWeights] | None = None
    reason: str = ""
    valid: bool = True


READERS = {
    "ln1": ("attn.W_Q", "attn.W_K", "attn.W_V", "attn.W_Q_down", "attn.W_KV_down", "attn.W_K_rot"),
    "ln2": ("mlp.W_in", "mlp.W_gate", "mlp.W_router", "mlp.shared.W_in", "mlp.shared.W_gate", "mlp.W_shared_gate"),
    "mlp.ln": ("mlp.W_out",),
}
"""The linear maps that follow each norm of a block. If attention and MLP share ln1, the maps of ln2 follow it too."""

SINKS = "with attention sinks the pattern does not sum to 1, so a value bias does not add a constant"

WRITERS = ("W_E", "W_pos", "W_O", "b_O", "W_out", "b_out")
"""Weights that write to the residual stream. With an embedding of width d_embed, `embed.W_proj` replaces W_E."""


def _fold_ln(cfg: Config) -> Plan:
    if cfg.normalization_type not in ("LN", "RMS"):
        return Plan(cfg, reason="the norms are already folded" if cfg.normalization_type else "the model has no norms")
    if cfg.positional_embedding_type == "shortformer":
        return Plan(cfg, valid=False, reason="positions are added between ln1 and W_Q, W_K")
    if cfg.norm_placement == "sum":
        reason = "post-sum norms feed the residual stream directly, so no linear map can absorb them"
        return Plan(cfg, valid=False, reason=reason)
    if cfg.output_head is None:
        return Plan(cfg, valid=False, reason="the model has no unembedding that could absorb the weight of ln_final")
    untied = cfg.replace(tie_word_embeddings=False)
    axes, readers = parameter_axes(untied), _readers(untied)
    biased = {weight for norm, weight in readers if f"{norm}.b" in axes}
    if any("e" in axes[weight].split() for weight in biased):
        return Plan(cfg, valid=False, reason="experts have no bias that could absorb the bias of ln2")
    if "unembed.W_proj" in biased:
        return Plan(cfg, valid=False, reason="unembed.W_proj has no bias that could absorb that of ln_final")

    def weights(params: Params) -> NewWeights:
        yield from _untied(cfg, params)
        for norm, weight in readers:
            letters, inner = axes[weight].split(), norm.endswith("mlp.ln")
            axis = letters.index(axes[f"{norm}.w"].split()[-1])
            if weight in biased:
                bias = params.get(_bias(weight))
                yield _bias(weight), arithmetic.fold_bias(params[weight], params[f"{norm}.b"], bias, axis)
            centre = inner or (cfg.final_norm_type if norm == "ln_final" else cfg.normalization_type) == "LN"
            w, offset = params[f"{norm}.w"], cfg.rmsnorm_uses_offset
            yield weight, arithmetic.fold(params[weight], w, axis, centre, offset)

    keeps_norms = cfg.norm_placement != "pre" or cfg.post_embedding_ln
    kept = [bias for bias in cfg.biases if bias != "norm" or keeps_norms]
    new = [_bias(weight).rpartition(".")[2] for weight in biased]
    after = untied.replace(normalization_type=f"{cfg.normalization_type}Pre", biases=(*kept, *new))
    keeping = [name for name in ("ln1_post", "ln2_post", "embed.ln") if any(f".{name}.w" in f".{key}" for key in axes)]
    reason = f"{' and '.join(keeping)} keep their weights: no linear map follows them" if keeping else ""
    return Plan(after, weights, reason)


def _readers(cfg: Config) -> list[tuple[str, str]]:
    """Pairs (norm, weight) of every norm and each linear map that follows it, such as ("ln_final", "unembed.W_U")."""
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
    present = [(norm, weight) for norm, weight in pairs if f"{norm}.w" in axes and weight in axes]
    return [pair for pair in present if {*axes[f"{pair[0]}.w"].split()} <= {*axes[pair[1]].split()}]


def _untied(cfg: Config, params: Params) -> NewWeights:
    """The unembedding as a separate weight, if it is tied to the embedding."""
    if cfg.tie_word_embeddings:
        yield "unembed.W_U", arithmetic.transpose(params["embed.W_E"])


def _bias(weight: str) -> str:
    """The bias of a weight: blocks.*.attn.b_Q for blocks.*.attn.W_Q."""
    module, _, name = weight.rpartition(".")
    return f"{module}.b_{name.removeprefix('W_')}"


def _center_writing_weights(cfg: Config) -> Plan:
    if cfg.normalization_type not in ("LN", "LNPre"):
        reader = "an RMSNorm" if cfg.normalization_type else "a linear map"
        return Plan(cfg, valid=False, reason=f"{reader} reads the residual stream, and depends on its mean")
    if cfg.final_rms:
        return Plan(cfg, valid=False, reason="the final RMSNorm reads the residual stream, and depends on its mean")
    if cfg.norm_placement == "post":
        return Plan(cfg, valid=False, reason="attention and MLP read the residual stream without a norm")
    if cfg.norm_placement == "both":
        return Plan(cfg, valid=False, reason="ln1_post and ln2_post write a mean to the residual stream")
    if cfg.norm_placement == "sum":
        return Plan(cfg, valid=False, reason="post-sum norms write a mean to the residual stream")
    if cfg.post_embedding_ln:
        return Plan(cfg, valid=False, reason="the norm of the embedding writes a mean to the residual stream")
    if cfg.positional_embedding_type == "sinusoidal":
        return Plan(cfg, valid=False, reason="sinusoidal positions write a mean to the residual stream")
    not_written = {"pos_embed.W_pos"} if cfg.positional_embedding_type == "shortformer" else set()
    not_written |= {"embed.W_E"} if cfg.d_embed else set()
    writers = tuple(f".{writer}" for writer in WRITERS)
    written = [name for name in parameter_axes(cfg) if name.endswith(writers) and name not in not_written]
    written += ["embed.W_proj"] if cfg.d_embed else []

    def weights(params: Params) -> NewWeights:
        yield from _untied(cfg, params)
        for name in written:  # the last axis of each is d_model
            yield name, arithmetic.centre(params[name])

    return Plan(cfg.replace(tie_word_embeddings=False), weights)


def _center_unembed(cfg: Config) -> Plan:
    if cfg.output_head is None:
        return Plan(cfg, reason="the model has no unembedding")
    if cfg.output_head != "next_token":
        return Plan(cfg, valid=False, reason="the outputs are scores of labels, whose mean matters")
    if cfg.output_logits_soft_cap is not None:
        return Plan(cfg, valid=False, reason="the logit soft cap is not invariant to adding a constant")

    def weights(params: Params) -> NewWeights:
        yield from _untied(cfg, params)
        yield "unembed.W_U", arithmetic.centre(params["unembed.W_U"])
        if "b_U" in cfg.biases:
            yield "unembed.b_U", arithmetic.centre(params["unembed.b_U"])

    return Plan(cfg.replace(tie_word_embeddings=False), weights)


def _fold_value_biases(cfg: Config) -> Plan:
    if "b_V" not in cfg.biases:
        return Plan(cfg, reason="the model has no value biases")
    if cfg.clip_qkv is not None:
        return Plan(cfg, valid=False, reason="values are clipped after the bias is added (clip_qkv)")
    if cfg.attn_sinks:
        return Plan(cfg, valid=False, reason=SINKS)

    def weights(params: Params) -> NewWeights:
        for attn in (f"blocks.{stack}.attn" for stack in cfg.stack_names):
            b_V, b_O = params[f"{attn}.b_V"], params.get(f"{attn}.b_O")
            yield f"{attn}.b_O", arithmetic.fold_values(params[f"{attn}.W_O"], b_V, b_O)
            yield f"{attn}.b_V", jnp.zeros_like(b_V)

    return Plan(cfg.replace(biases=(*cfg.biases, "b_O")), weights)


def _refactor_factored_attn_matrices(cfg: Config) -> Plan:
    if cfg.rotary_dim is not None:
        return Plan(cfg, valid=False, reason="queries and keys are rotated by their positions (rotary)")
    if cfg.qk_norm is not None:
        return Plan(cfg, valid=False, reason="queries and keys are normalized (qk_norm)")
    if cfg.clip_qkv is not None:
        return Plan(cfg, valid=False, reason="queries, keys and values are clipped (clip_qkv)")
    if cfg.attn_sinks and "b_V" in cfg.biases:
        return Plan(cfg, valid=False, reason=SINKS)
    if cfg.n_key_value_heads != cfg.n_heads:
        return Plan(cfg, valid=False, reason=f"{cfg.n_heads} query heads share {cfg.n_key_value_heads} key/value heads")
    values = _fold_value_biases(cfg)

    def weights(params: Params) -> NewWeights:
        yield from values.weights(params) if values.weights else ()
        for attn in (f"blocks.{stack}.attn" for stack in cfg.stack_names):
            names = [f"{attn}.{name}" for name in ("W_Q", "W_K", "b_Q", "b_K")]
            balanced = arithmetic.balance_queries_and_keys(*map(params.get, names))
            yield from ((name, value) for name, value in zip(names, balanced, strict=True) if value is not None)
            names = [f"{attn}.{name}" for name in ("W_V", "W_O")]
            yield from zip(names, arithmetic.rotate_values(*map(params.get, names)), strict=True)

    return Plan(values.cfg, weights)


PASSES: dict[str, Callable[[Config], Plan]] = {
    "fold_ln": _fold_ln, "center_writing_weights": _center_writing_weights, "center_unembed": _center_unembed,
    "fold_value_biases": _fold_value_biases, "refactor_factored_attn_matrices": _refactor_factored_attn_matrices,
}  # fmt: skip
"""The passes in their order. The order matters: W_U is centered after the final norm has been folded into it."""


def plan_of(name: str, cfg: Config) -> Plan:
    """The plan of a pass. Weights with an adapter that is not merged are not changed."""
    if cfg.adapter:
        return Plan(cfg, valid=False, reason="the adapter is not merged; use `model.merge_adapter()` first")
    return PASSES[name](cfg)
