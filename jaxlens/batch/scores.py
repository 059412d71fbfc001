"""Log-probabilities of texts, and of continuations after contexts.

Axes: b batch, p position, v vocabulary.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlens._jax import wide
from jaxlens.batch.contexts import Reader
from jaxlens.batch.program import Program
from jaxlens.batch.sources import Document, Source
from jaxlens.batch.stream import BATCH_TOKENS, in_order, progress_bar, with_hooks
from jaxlens.hooks.plan import HookSpec
from jaxlens.model.cache.activation_cache import ActivationCache
from jaxlens.model.request import LayerRange, ModelInput, bos_choice, required_tokenizer
from jaxlens.model.transformer import HookedTransformer
from jaxlens.nn.embed import check_has_head


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """The log-probabilities of tokens in nats, and whether each token is the one that the model ranks first."""

    log_probs: Float[np.ndarray, "p"]
    is_greedy: Bool[np.ndarray, "p"]


@overload
def score(model: HookedTransformer, data: list | tuple, *args: Any, **kwargs: Any) -> list[np.ndarray]: ...
@overload
def score(model: HookedTransformer, data: Any, *args: Any, **kwargs: Any) -> Iterator[np.ndarray]: ...
def score(
    model: HookedTransformer, data: Any, contexts: Iterable[Document] | None = None, *,
    hooks: Sequence[HookSpec] | None = None, batch_tokens: int = BATCH_TOKENS, max_length: int | None = None,
    column: str | None = None, prepend_bos: bool | None = None, progress: bool | None = None,
) -> list[Float[np.ndarray, "p"]] | Iterator[Float[np.ndarray, "p"]]:  # fmt: skip
    """The log-probability of each token, in nats: for each document an array of those of its tokens after the first.

    They are the negative of `model(document, return_type="loss", loss_per_token=True)`, except with dynamic or LongRoPE
    scaling: their rotations depend on the number of tokens that run, and the last token of a document does not run. It
    is only predicted, as in lm-evaluation-harness, so `max_length` may be n_ctx + 1 (default: n_ctx).

    With `contexts`, one for each document, the documents are continuations of them, and only the tokens of the
    continuations are scored. Context and continuation are tokenized as one text. A context that is too long loses its
    first tokens, with a warning.

    A list of documents gives a list. Other data, which may be larger than memory, gives an iterator. The other
    arguments are those of `run`. A document with a single token has no score: its array is empty.

    Raises:
        ValueError: The numbers of documents and contexts differ, a continuation has no token, or the model has no
            prediction of the next token.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=1, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> [len(log_probs) for log_probs in score(model, [[1, 2], [3, 4, 5]])]
        [1, 2]
        >>> [len(log_probs) for log_probs in score(model, [[2]], contexts=[[3, 4, 5]])]
        [1]
    """
    options = {"hooks": hooks, "batch_tokens": batch_tokens, "max_length": max_length, "prepend_bos": prepend_bos}
    found = token_scores(model, data, contexts, column=column, progress=progress, **options)
    log_probs = (scores.log_probs for scores in found)
    return list(log_probs) if isinstance(data, list | tuple) else log_probs


def token_scores(
    model: HookedTransformer, data: Any, contexts: Iterable[Document] | None = None, *,
    hooks: Sequence[HookSpec] | None = None, batch_tokens: int = BATCH_TOKENS, max_length: int | None = None,
    column: str | None = None, prepend_bos: bool | None = None, progress: bool | None = None,
) -> Iterator[Scores]:  # fmt: skip
    """`score` that also says which tokens are the model's first choice."""
    reader, source = Reader(model, max_length, prepend_bos, n_ahead=1), Source.of(data, column)
    check_has_head(model.cfg)
    if model.cfg.output_head != "next_token":
        raise ValueError("this model scores labels; it does not predict tokens, so it has no log-probability of a text")
    n_scored: dict[int, int] = {}  # by document, until its result is there
    if contexts is not None:
        pairs = _continued(model, source, Source.of(contexts), prepend_bos, reader.max_length, n_scored)
        source = Source(lambda start: itertools.islice(pairs, start, None), source.size)
    layers = LayerRange.of(model.cfg, None, None)
    program = Program(with_hooks(model, hooks, layers), frozenset(), layers, _scores_of_batch, n_ahead=1)

    def results() -> Iterator[Scores]:
        with progress_bar(progress, source.size, "documents") as bar:
            rows = in_order(program, reader.contexts(source), batch_tokens, reader, bar)
            for number, (log_probs, is_greedy) in enumerate(rows):
                first = len(log_probs) - n_scored.pop(number, len(log_probs))
                yield Scores(log_probs[first:], is_greedy[first:])

    return results()


def _scores_of_batch(
    logits: Float[Array, "b p v"], cache: ActivationCache, model_input: ModelInput
) -> tuple[Float[Array, "b p"], Bool[Array, "b p"]]:
    """The log-probability of each token after the first, and whether it is the first choice."""
    logits, following = wide(logits), model_input.tokens[:, 1:]
    chosen = jnp.take_along_axis(logits, following[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1) == following


def _continued(
    model: HookedTransformer, continuations: Source, contexts: Source, prepend_bos: bool | None, limit: int,
    n_scored: dict[int, int],
) -> Iterator[Int[np.ndarray, "p"]]:  # fmt: skip
    """The tokens of each context with its continuation, of which the first are dropped if they are too many."""
    has_cut = False
    both = itertools.zip_longest(contexts.read(0), continuations.read(0))
    for number, (context, continuation) in enumerate(both):
        if context is None or continuation is None:
            missing = "context" if context is None else "document"
            raise ValueError(f"there is no {missing} number {number}; give one context for each document")
        before, after = _pair(model, context, continuation, prepend_bos, number)
        if not len(before):
            raise ValueError(f"context {number} has no tokens, so nothing predicts its continuation; prepend BOS")
        if isinstance(continuation, str) and continuation and not len(after):
            joined = f"{continuation!r} is in one token with the end of its context"
            raise ValueError(f"document {number} has no token of its own: {joined}")
        if not 0 < len(after) < limit:
            expected = f"expected 1 to {limit - 1} tokens after a context"
            raise ValueError(f"document {number} has {len(after)} tokens; {expected}")
        n_scored[number] = len(after)
        tokens = np.concatenate([before, after]).astype(np.int32)
        if len(tokens) > limit and not has_cut:
            has_cut, longer = True, f"context {number} and its continuation have {len(tokens)} tokens"
            message = f"{longer}; the first are dropped to leave max_length = {limit}, as in all that are longer"
            warnings.warn(message, UserWarning, stacklevel=2)
        yield tokens[-limit:]


def _pair(
    model: HookedTransformer, context: Document, continuation: Document, prepend_bos: bool | None, number: int
) -> tuple[Any, Any]:
    """The tokens of a context and of its continuation. The spaces that end a context are tokenized with the rest."""
    if isinstance(context, str) != isinstance(continuation, str):
        raise TypeError(f"document {number} and its context must both be texts, or both rows of tokens")
    if not isinstance(context, str):
        return context, continuation
    kept = context.rstrip()
    tokenizer, bos = required_tokenizer(model.tokenizer), bos_choice(model.cfg, prepend_bos)
    before, whole = tokenizer.rows([kept, context + continuation], bos)
    return whole[: len(before)], whole[len(before) :]
