"""How does a small language model know who gets the bag?

    "When John and Mary went to the shops, John gave the bag to" → " Mary"

The indirect-object task of "Interpretability in the Wild" (Wang et al. 2022, arXiv 2211.00593), with the eight prompts
and the steps of TransformerLens's Exploratory Analysis demo. These functions are meant to be copied. `report.py` runs
them and prints the results.

Axes: b prompt, p position, n head, l layer, v vocabulary.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens.analysis.attribution.compare import Agreement
from jaxlens.analysis.heads import PATTERNS, mean_attention_back
from jaxlens.analysis.labelled_array import Labelled
from jaxlens.analysis.logit_attribution import READS, direct_logit_attribution
from jaxlens.hooks.names import get_act_name
from jaxlens.model.cache.activation_cache import ActivationCache
from jaxlens.model.transformer import HookedTransformer

TEMPLATES = (
    ("When John and Mary went to the shops,{} gave the bag to", (" Mary", " John")),
    ("When Tom and James went to the park,{} gave the ball to", (" Tom", " James")),
    ("When Dan and Sid went to the shops,{} gave an apple to", (" Dan", " Sid")),
    ("After Martin and Amy went to the park,{} gave a drink to", (" Martin", " Amy")),
)
KINDS = ("induction", "previous token", "duplicate token")
"""Kinds of heads that can be recognized by the positions to which they attend."""

LAST = slice(-1, None)
"""The last position. The position axis keeps length 1."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
    """The prompts, each with the pair (correct name, wrong name), as text and as tokens."""

    texts: list[str]
    names: list[tuple[str, str]]
    tokens: Int[Array, "b p"]
    answers: Int[Array, "b 2"]

    @property
    def corrupted(self) -> Int[np.ndarray, "b p"]:
        """The tokens of every prompt with exchanged names, which also exchanges the correct and the wrong answer."""
        return np.asarray(self.tokens).reshape(-1, 2, self.tokens.shape[1])[:, ::-1].reshape(self.tokens.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """The results of the demo, in logits.

    `ablated` is the logit difference of each prompt without `head`. `residual` and `heads` are the fractions of the
    logit difference that patching restores. `scores` are fractions of attention.
    """

    model_name: str
    names: list[tuple[str, str]]
    clean: Float[np.ndarray, " b"]
    lens: Float[np.ndarray, "l b"]
    attribution: Float[np.ndarray, "l n"]
    head: tuple[int, int]
    ablated: Float[np.ndarray, " b"]
    scores: dict[str, Float[np.ndarray, "l n"]]
    residual: Labelled
    heads: Labelled
    agreement: Agreement


def indirect_object_prompts(model: HookedTransformer) -> Prompts:
    """Two prompts per template. In each, a different name is the giver, and the other name is the correct answer."""
    texts = [text.format(giver) for text, pair in TEMPLATES for giver in reversed(pair)]
    names = [order for _, pair in TEMPLATES for order in (pair, pair[::-1])]
    lengths = sorted({len(tokens) for tokens in model.to_str_tokens(texts)})
    if len(lengths) > 1:
        raise ValueError(f"the prompts have {lengths} tokens with this tokenizer; expected equal lengths")
    answers = jnp.array([[model.to_single_token(name) for name in pair] for pair in names])
    return Prompts(texts, names, model.to_tokens(texts), answers)


def logit_difference(logits: Float[Array, "b p v"], answers: Int[Array, "b 2"]) -> Float[Array, " b"]:
    """The logit of the correct answer minus that of the wrong answer, at the last position."""
    right, wrong = jnp.take_along_axis(logits[:, -1], answers, axis=-1).T
    return right - wrong


def is_read(name: str) -> bool:
    """Whether the logit lens or the attribution of heads needs an activation."""
    return name.endswith(("hook_resid_pre", "ln_final.hook_scale", *READS["head"]))


def logit_lens(cache: ActivationCache, answers: Int[Array, "b 2"]) -> Float[Array, "l b"]:
    """The logit difference after each layer, read with the final norm and the unembedding."""
    right, wrong = (cache.logit_lens(targets=names[:, None], positions=LAST).values for names in answers.T)
    return (right - wrong)[1:, :, 0, 0]  # the first entry is the embedding


def head_attribution(cache: ActivationCache, answers: Int[Array, "b 2"]) -> Float[Array, "l n"]:
    """The direct contribution of each head to the logit difference, in logits, averaged over prompts."""
    right, wrong = answers.T
    attribution = direct_logit_attribution(cache.model, None, right, wrong, unit="head", pos=LAST, cache=cache)
    return attribution.heads().mean((-2, -1))


def without_head(model: HookedTransformer, tokens: Int[Array, "b p"], layer: int, head: int) -> Float[Array, "b p v"]:
    """The logits with the output of one head set to zero, by a plain Python function."""

    def ablate(z, hook):
        return z.at[:, :, head].set(0)

    return model.run_with_hooks(tokens, fwd_hooks=[(get_act_name("z", layer), ablate)])


def scores_and_losses(
    model: HookedTransformer, tokens: Int[Array, "b p"]
) -> tuple[dict[str, Float[np.ndarray, "l n"]], dict[str, float]]:
    """The scores of each kind of head on `repeated_random_tokens`, and the mean loss on each half, from a single run.

    The loss on the first token of the second half is left out, because the repetition cannot be predicted.
    """
    loss, cache = model.run_with_cache(tokens, names_filter=PATTERNS, return_type="loss", loss_per_token=True)
    half = tokens.shape[1] // 2
    patterns, second_half = cache.stack_activation("pattern"), tokens.shape[1] - half
    kinds = {"induction": (half - 1, second_half), "previous token": (1, 1), "duplicate token": (half, second_half)}
    scores = {kind: np.asarray(mean_attention_back(patterns, *where)) for kind, where in kinds.items()}
    return scores, {"first half": float(loss[:, :-half].mean()), "second half": float(loss[:, 1 - half :].mean())}


def strongest_heads(values: Float[np.ndarray, "l n"], count: int = 10) -> list[tuple[int, int]]:
    """The `count` heads of largest absolute value, as pairs (layer, head)."""
    order = np.argsort(-np.abs(values), axis=None)[:count]
    return [(int(layer), int(head)) for layer, head in zip(*np.unravel_index(order, values.shape), strict=True)]
