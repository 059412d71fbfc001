"""Weight processing: the same log-probabilities from weights that are easier to read.

Every pass takes parameters and their config and returns both anew. What goes in stays as it is, and weights that a pass
does not change are shared, not copied. The new ones are computed in float32 at least and made one at a time: where the
old ones are given up on the way (`donate`), no more than one weight is in memory twice.

A pass that would change what a model computes raises a ValueError that says why; one that finds nothing to do gives
back what it got. `process_weights` applies those that are valid and reports on the others.
"""

import dataclasses
from collections.abc import Mapping

import jax

from jaxlens.config import Config
from jaxlens.parameters import Params, check_parameters, parameter_axes
from jaxlens.weights.plans import PASSES, Plan


@dataclasses.dataclass(frozen=True)
class Processing:
    """What became of a pass that was asked for: whether it was applied; why not, or what it left as it was."""

    name: str
    applied: bool
    reason: str = ""

    def __str__(self) -> str:
        return f"{'' if self.applied else 'not '}{self.name}{self.reason and f': {self.reason}'}"


def fold_ln(params: Mapping[str, jax.Array], cfg: Config) -> tuple[Params, Config]:
    """Folds the weights and biases of norms into the linear maps that read them.

    A norm (LayerNorm, arXiv 1607.06450; RMSNorm, arXiv 1910.07467) ends in `x * w + b`, and a linear map of that is a
    linear map of x: `W` becomes `w[:, None] * W` and its bias `b @ W + bias`. Since a LayerNorm's x has mean zero, each
    column of W is centred too. The norms are then of the type "LNPre" or "RMSPre", `ln1.hook_normalized` is what W_Q
    reads, and biases that had to be made are in `cfg.biases`. Tied embeddings come apart. Norms of what attention or
    the MLP writes (`ln1_post`, `ln2_post`) have no linear map after them and keep their weights, as do those of
    queries and keys. Experts and their router take up the weight of `ln2` as a plain MLP does.

    Raises:
        ValueError: positions are added between ln1 and W_Q (shortformer), or experts, which have no biases, would have
            to take up one; or `params` are not those of `cfg`.

    Example:
        >>> from jaxlens.parameters import init_parameters
        >>> cfg = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8)
        >>> folded, folded_cfg = fold_ln(init_parameters(cfg), cfg)
        >>> folded_cfg.normalization_type, "blocks.*.ln1.w" in folded
        ('LNPre', False)
    """
    return _alone("fold_ln", params, cfg)


def center_writing_weights(params: Mapping[str, jax.Array], cfg: Config) -> tuple[Params, Config]:
    """Takes the mean over d_model from everything that is written to the residual stream.

    These are `W_E`, `W_pos`, `W_O`, `b_O`, `W_out` and `b_out`: every reader is a LayerNorm, which takes away the mean
    of what it reads, so nothing depends on it. Tied embeddings come apart.

    Raises:
        ValueError: something reads the residual stream's mean, or a norm writes one to it; or `params` are not those
            of `cfg`.

    Example:
        >>> from jaxlens.parameters import init_parameters
        >>> cfg = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8)
        >>> centred, _ = center_writing_weights(init_parameters(cfg), cfg)
        >>> bool(abs(centred["blocks.*.attn.W_O"].mean(-1)).max() < 1e-6)
        True
    """
    return _alone("center_writing_weights", params, cfg)


def center_unembed(params: Mapping[str, jax.Array], cfg: Config) -> tuple[Params, Config]:
    """Takes the mean over the vocabulary from `W_U` and `b_U`: every position's logits then have mean zero.

    Logits move by a constant per position, log-probabilities and losses do not. Tied embeddings come apart.

    Raises:
        ValueError: a soft cap follows, for which logits moved by a constant are other logits; or `params` are not
            those of `cfg`.

    Example:
        >>> from jaxlens.parameters import init_parameters
        >>> cfg = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8)
        >>> centred, _ = center_unembed(init_parameters(cfg), cfg)
        >>> bool(abs(centred["unembed.W_U"].mean(-1)).max() < 1e-6)
        True
    """
    return _alone("center_unembed", params, cfg)


def fold_value_biases(params: Mapping[str, jax.Array], cfg: Config) -> tuple[Params, Config]:
    """Moves the value biases through `W_O` into `b_O`, and leaves zeros.

    The probabilities of a query sum to one, so a value bias adds the same to every position, whatever the pattern.

    Raises:
        ValueError: `params` are not those of `cfg`.

    Example:
        >>> from jaxlens.parameters import init_parameters
        >>> cfg = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8)
        >>> params = init_parameters(cfg) | {"blocks.*.attn.b_V": jax.numpy.ones((2, 2, 4))}
        >>> folded, _ = fold_value_biases(params, cfg)
        >>> bool((folded["blocks.*.attn.b_V"] == 0).all()), bool((folded["blocks.*.attn.b_O"] == 0).all())
        (True, False)
    """
    return _alone("fold_value_biases", params, cfg)


def refactor_factored_attn_matrices(params: Mapping[str, jax.Array], cfg: Config) -> tuple[Params, Config]:
    """Gives every head's `W_Q W_K^T` and `W_V W_O` their singular factors ("A Mathematical Framework for Transformer
    Circuits", transformer-circuits.pub/2021/framework).

    Only these products matter. With `W_Q W_K^T = U S V^T`, `W_Q` becomes `U sqrt(S)` and `W_K` becomes `V sqrt(S)`, the
    biases of queries and keys being one more row of each; with `W_V W_O = U S V^T`, `W_V` becomes `U S` and `W_O`
    becomes `V^T`, a rotation. Value biases are folded first.

    Raises:
        ValueError: queries and keys are turned (rotary) or normalised between their two maps, or query heads share
            keys and values; or `params` are not those of `cfg`.

    Example:
        >>> from jaxlens.parameters import init_parameters
        >>> cfg = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8)
        >>> params, _ = refactor_factored_attn_matrices(init_parameters(cfg), cfg)
        >>> W_O = params["blocks.*.attn.W_O"]
        >>> bool(abs(W_O @ W_O.mT - jax.numpy.eye(4)).max() < 1e-5)
        True
    """
    return _alone("refactor_factored_attn_matrices", params, cfg)


def process_weights(
    params: Mapping[str, jax.Array],
    cfg: Config,
    fold_ln: bool = True,
    center_writing_weights: bool = True,
    center_unembed: bool = True,
    fold_value_biases: bool = True,
    refactor_factored_attn_matrices: bool = False,
    *,
    donate: bool = False,
) -> tuple[Params, Config, tuple[Processing, ...]]:
    """The passes that are asked for, in this order, each where it is valid; and what became of each.

    `donate` empties the dict `params` on the way: each weight is let go as soon as its successor is made, so that no
    second copy of the model exists. It needs that nothing else holds the weights.

    Raises:
        ValueError: `params` are not those of `cfg`.

    Example:
        >>> from jaxlens.parameters import init_parameters
        >>> cfg = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8, output_logits_soft_cap=9.0)
        >>> params, cfg, report = process_weights(init_parameters(cfg), cfg, fold_value_biases=False)
        >>> print(*report, sep="; ")
        fold_ln; center_writing_weights; not center_unembed: a soft cap on logits tells them from logits moved by a constant
    """  # noqa: E501
    asked = {
        "fold_ln": fold_ln,
        "center_writing_weights": center_writing_weights,
        "center_unembed": center_unembed,
        "fold_value_biases": fold_value_biases,
        "refactor_factored_attn_matrices": refactor_factored_attn_matrices,
    }
    check_parameters(cfg, params)
    weights, report = params if donate else dict(params), []
    for name in (name for name in PASSES if asked[name]):
        plan = PASSES[name](cfg)
        cfg = _carry_out(plan, weights)
        report.append(Processing(name, plan.leaves is not None, plan.reason))
    processed = {name: weights[name] for name in parameter_axes(cfg)}
    if donate:
        weights.clear()
    return processed, cfg, tuple(report)


def _alone(name: str, params: Mapping[str, jax.Array], cfg: Config) -> tuple[Params, Config]:
    """A single pass, which must be valid."""
    check_parameters(cfg, params)
    plan = PASSES[name](cfg)
    if not plan.valid:
        raise ValueError(f"{name} would change what this model computes: {plan.reason}")
    weights = dict(params)
    cfg = _carry_out(plan, weights)
    return {name: weights[name] for name in parameter_axes(cfg)}, cfg


def _carry_out(plan: Plan, weights: Params) -> Config:
    """Replaces the weights that a plan has new ones for, one after the other; the config after it."""
    for name, leaf in plan.leaves(weights) if plan.leaves else ():
        weights[name] = jax.block_until_ready(leaf)  # or several would be on their way, with what they are made from
    for name in weights.keys() - parameter_axes(plan.cfg).keys():
        del weights[name]
    return plan.cfg
