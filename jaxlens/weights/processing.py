"""Weight processing: weights that are easier to interpret and compute the same log-probabilities.

A pass takes parameters and their config, and returns new parameters and a new config. It does not change its input, and
shares unchanged weights with it. New weights are computed in float32 or wider, one at a time. A pass with nothing to do
returns its input. A pass raises ValueError if it would change what the model computes, or if `params` do not fit `cfg`.
`process_weights` applies the passes that are valid and reports the outcome of all.

Example:
    >>> from jaxlens.nn.parameters import init_parameters
    >>> cfg = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8)
    >>> folded, folded_cfg = fold_ln(init_parameters(cfg), cfg)
    >>> folded_cfg.normalization_type, "blocks.*.ln1.w" in folded
    ('LNPre', False)
    >>> centred, _ = center_unembed(folded, folded_cfg)
    >>> bool(abs(centred["unembed.W_U"].mean(-1)).max() < 1e-6)
    True
"""

import dataclasses
from collections.abc import Mapping

import jax

from jaxlens._jax import full_precision
from jaxlens._jax.explicit_axes import on_any_mesh
from jaxlens.config import Config
from jaxlens.nn.parameters import Params, check_parameters, parameter_axes
from jaxlens.weights.plans import PASSES, Plan, plan_of


@dataclasses.dataclass(frozen=True)
class Processing:
    """The outcome of a requested pass. `reason` explains why it was not applied, or what it left unchanged."""

    name: str
    applied: bool
    reason: str = ""

    def __str__(self) -> str:
        return f"{'' if self.applied else 'not '}{self.name}{self.reason and f': {self.reason}'}"


def fold_ln(params: Mapping[str, jax.Array], cfg: Config) -> tuple[Params, Config]:
    """Folds the weights and biases of norms into the linear maps that follow them.

    The last step of a norm (LayerNorm, arXiv 1607.06450; RMSNorm, arXiv 1910.07467) is `x * w + b`. A linear map of
    this is a linear map of x: `W` becomes `w[:, None] * W`, and its bias becomes `b @ W + bias`. In a LayerNorm, x has
    mean zero, so each column of W is also centered. Afterwards the norms have the type "LNPre" or "RMSPre",
    `ln1.hook_normalized` is the input of W_Q, and `cfg.biases` lists new biases. Tied embeddings become two weights.

    Experts and their router absorb the weight of `ln2` as a plain MLP does. Norms of the output of attention or MLP
    (`ln1_post`, `ln2_post`) and of queries and keys keep their weights, because no linear map follows them. The pass is
    not valid if positions are added between ln1 and W_Q (shortformer), or if experts would need a bias.
    """
    return _apply_pass("fold_ln", params, cfg)


def center_writing_weights(params: Mapping[str, jax.Array], cfg: Config) -> tuple[Params, Config]:
    """Subtracts the mean over d_model from every weight that writes to the residual stream.

    These are `W_E`, `W_pos`, `W_O`, `b_O`, `W_out` and `b_out`. Every reader is a LayerNorm, which subtracts the mean
    of its input, so the output does not change. Tied embeddings become two weights. The pass is not valid if a reader
    depends on the mean of the residual stream, as an RMSNorm does, or if a norm writes a mean to it.
    """
    return _apply_pass("center_writing_weights", params, cfg)


def center_unembed(params: Mapping[str, jax.Array], cfg: Config) -> tuple[Params, Config]:
    """Subtracts the mean over the vocabulary from `W_U` and `b_U`, so that the logits of a position have mean zero.

    Logits shift by a constant per position. Log-probabilities and losses do not change. Tied embeddings become two
    weights. The pass is not valid with a soft cap on logits, which a constant shift would change.
    """
    return _apply_pass("center_unembed", params, cfg)


def fold_value_biases(params: Mapping[str, jax.Array], cfg: Config) -> tuple[Params, Config]:
    """Moves the value biases through `W_O` into `b_O` and sets them to zero.

    The attention probabilities of a query sum to one, so a value bias adds the same vector at every position. The pass
    is not valid with attention sinks, where they do not sum to one, or if values are clipped.
    """
    return _apply_pass("fold_value_biases", params, cfg)


@on_any_mesh
@full_precision()
def refactor_factored_attn_matrices(params: Mapping[str, jax.Array], cfg: Config) -> tuple[Params, Config]:
    """Replaces the factors of `W_Q W_K^T` and `W_V W_O` of every head by their singular factors.

    Only these products affect the output (Elhage et al. 2021, transformer-circuits.pub/2021/framework). With
    `W_Q W_K^T = U S V^T`, `W_Q` becomes `U sqrt(S)` and `W_K` becomes `V sqrt(S)`. Biases are treated as an additional
    row of each. With `W_V W_O = U S V^T`, `W_V` becomes `U S` and `W_O` becomes `V^T`. Value biases are folded first.
    The pass is not valid if queries and keys are rotated, normalized or clipped, or if query heads share keys and
    values.
    """
    return _apply_pass("refactor_factored_attn_matrices", params, cfg)


@on_any_mesh
@full_precision()
def process_weights(
    params: Mapping[str, jax.Array], cfg: Config, fold_ln: bool = True, center_writing_weights: bool = True,
    center_unembed: bool = True, fold_value_biases: bool = True, refactor_factored_attn_matrices: bool = False, *,
    consume: bool = False,
) -> tuple[Params, Config, tuple[Processing, ...]]:  # fmt: skip
    """Applies the requested passes that are valid, in the order of the arguments, and reports the outcome of each.

    With `consume`, the dict `params` is emptied, and each weight is released as soon as its replacement exists. If no
    other reference to the weights exists, there is never a second copy of the model.

    Raises:
        ValueError: `params` do not fit `cfg`.

    Example:
        >>> from jaxlens.nn.parameters import init_parameters
        >>> cfg = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8, output_logits_soft_cap=9.0)
        >>> params, cfg, report = process_weights(init_parameters(cfg), cfg, fold_value_biases=False)
        >>> print(*report, sep="; ")
        fold_ln; center_writing_weights; not center_unembed: the logit soft cap is not invariant to adding a constant
    """
    requested = {
        "fold_ln": fold_ln, "center_writing_weights": center_writing_weights, "center_unembed": center_unembed,
        "fold_value_biases": fold_value_biases, "refactor_factored_attn_matrices": refactor_factored_attn_matrices,
    }  # fmt: skip
    check_parameters(cfg, params)
    weights, report = params if consume else dict(params), []
    for name in (name for name in PASSES if requested[name]):
        plan = plan_of(name, cfg)
        cfg = _execute(plan, weights)
        report.append(Processing(name, plan.weights is not None, plan.reason))
    processed = {name: weights[name] for name in parameter_axes(cfg)}
    if consume:
        weights.clear()
    return processed, cfg, tuple(report)


def _apply_pass(name: str, params: Mapping[str, jax.Array], cfg: Config) -> tuple[Params, Config]:
    """Applies a single pass. Raises ValueError if it is not valid."""
    check_parameters(cfg, params)
    plan = plan_of(name, cfg)
    if not plan.valid:
        raise ValueError(f"{name} would change what this model computes: {plan.reason}")
    weights = dict(params)
    cfg = _execute(plan, weights)
    return {name: weights[name] for name in parameter_axes(cfg)}, cfg


def _execute(plan: Plan, weights: Params) -> Config:
    """Replaces weights in place, one at a time, and returns the new config."""
    for name, value in plan.weights(weights) if plan.weights else ():
        # Without blocking, several new weights and their inputs would be in memory at the same time.
        weights[name] = jax.block_until_ready(value)
    for name in weights.keys() - parameter_axes(plan.cfg).keys():
        del weights[name]
    return plan.cfg
