"""Attention heads recognised by where they look: previous tokens, duplicates, what came after one, or any pattern.

Axes: l layer, n head, b batch, p query position, s source position.
"""

import functools
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlens.analysis.activation_cache import ActivationCache

HeadName = Literal["previous_token_head", "duplicate_token_head", "induction_head"]
ErrorMeasure = Literal["mul", "abs"]
Heads = Iterable[tuple[int, int]] | Mapping[int, Iterable[int]]
PATTERNS = "blocks.*.attn.hook_pattern"

# --- where a kind of head looks


def get_previous_token_head_detection_pattern(tokens: Int[Array, "*b p"]) -> Float[Array, "*b p s"]:
    """1 where the source is the token before the query. One prompt [1 p] gives [p s].

    Example:
        >>> get_previous_token_head_detection_pattern(np.array([7, 8, 9])).tolist()
        [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    tokens = _without_batch_of_one(tokens)
    return jnp.broadcast_to(jnp.eye(tokens.shape[-1], k=-1), (*tokens.shape, tokens.shape[-1]))


def get_duplicate_token_head_detection_pattern(tokens: Int[Array, "*b p"]) -> Float[Array, "*b p s"]:
    """1 where the source is an earlier occurrence of the query's token. One prompt [1 p] gives [p s]."""
    tokens = _without_batch_of_one(tokens)
    return jnp.tril(tokens[..., :, None] == tokens[..., None, :], k=-1).astype(jnp.float32)


def get_induction_head_detection_pattern(tokens: Int[Array, "*b p"]) -> Float[Array, "*b p s"]:
    """1 where the source comes right after an earlier occurrence of the query's token. One prompt [1 p] gives [p s].

    Induction heads are those of Olsson et al. 2022 (arXiv 2209.11895).

    Example:
        >>> get_induction_head_detection_pattern(np.array([7, 8, 7])).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    # no token is an earlier occurrence of a later one, so what rolls round from the last column is zero
    return jnp.roll(get_duplicate_token_head_detection_pattern(tokens), 1, axis=-1)


def _without_batch_of_one(tokens: Any) -> Int[Array, "*b p"]:
    tokens = jnp.asarray(tokens)
    return tokens[0] if tokens.ndim == 2 and len(tokens) == 1 else tokens


_LOOKS = {
    "previous_token_head": get_previous_token_head_detection_pattern,
    "duplicate_token_head": get_duplicate_token_head_detection_pattern,
    "induction_head": get_induction_head_detection_pattern,
}
HEAD_NAMES: tuple[HeadName, ...] = tuple(_LOOKS)


def get_supported_heads() -> None:
    """Prints the names of detection patterns."""
    print(f"Supported heads: {HEAD_NAMES}")


# --- how far a head looks there


def compute_head_attention_similarity_score(
    attention_pattern: Float[Array, "... p s"],
    detection_pattern: Float[Array, "... p s"],
    *,
    exclude_bos: bool,
    exclude_current_token: bool,
    error_measure: ErrorMeasure,
) -> Float[Array, "..."]:
    """How much an attention pattern is like a detection pattern; both are lower triangular.

    "mul": the fraction of the attention that goes where the detection pattern is 1. "abs": 1 less the difference of the
    two, summed over sources and averaged over queries, to three decimals; 1 at best, -1 at worst. `exclude_bos` leaves
    the first source out, `exclude_current_token` the query's own.

    Example:
        >>> pattern = jnp.array([[1.0, 0.0], [0.75, 0.25]])
        >>> how = dict(exclude_bos=False, exclude_current_token=True)
        >>> float(compute_head_attention_similarity_score(pattern, jnp.eye(2, k=-1), error_measure="mul", **how))
        1.0
    """
    _check_measure(error_measure)
    pattern = jnp.asarray(attention_pattern)
    if pattern.ndim < 2 or pattern.shape[-1] != pattern.shape[-2]:
        raise ValueError(f"an attention pattern is square, [... pos pos]; got shape {pattern.shape}")
    real = jnp.ones(pattern.shape[-1], bool)
    return _similarity(pattern, jnp.asarray(detection_pattern), real, exclude_bos, exclude_current_token, error_measure)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _similarity(pattern, detection, real: Bool[Array, "... p"], exclude_bos, exclude_current_token, error_measure):
    kept = jnp.broadcast_to(real[..., None], (*real.shape, real.shape[-1]))
    kept = kept.at[..., 0].set(False) if exclude_bos else kept
    kept = kept & ~jnp.eye(real.shape[-1], dtype=bool) if exclude_current_token else kept
    if error_measure == "mul":
        attention = jnp.where(kept, pattern, 0)
        return jnp.sum(attention * detection, axis=(-2, -1)) / jnp.sum(attention, axis=(-2, -1))
    difference = jnp.where(kept, jnp.abs(pattern - detection), 0)
    return 1 - jnp.round(jnp.sum(difference, axis=(-2, -1)) / jnp.sum(real, axis=-1), 3)


def detect_head(
    model: Any,
    seq: str | list[str] | Int[Array, "b p"],
    detection_pattern: HeadName | Float[Array, "p s"],
    heads: Heads | None = None,
    cache: ActivationCache | None = None,
    *,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
    error_measure: ErrorMeasure = "mul",
) -> Float[Array, "l n"]:
    """How much each head looks where a kind of head does: `compute_head_attention_similarity_score` of all heads.

    `detection_pattern` is the name of a kind (`HEAD_NAMES`) or a lower-triangular array. `seq` is text, which is given
    a BOS token if that is the model's default, or tokens; of several prompts the mean is taken. `heads` chooses some,
    as (layer, head) pairs or as a dict of heads by layer, and the others score -1. `cache` is a run of the same
    prompts, to save another.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> detect_head(model, [[1, 2, 3, 1, 2]], "induction_head", heads=[(1, 0)]).shape
        (2, 2)

    Raises:
        ValueError: the pattern, the measure or a head does not exist, the pattern does not fit the prompt, or a prompt
            has a single token.
    """
    _check_measure(error_measure)
    tokens, real = _read(model, seq)
    detection = _detection_pattern(detection_pattern, tokens, error_measure)
    chosen = _chosen(heads, model.cfg.n_layers, model.cfg.n_heads)
    if cache is None:
        _, cache = model.run_with_cache(
            tokens, names_filter=PATTERNS, attention_mask=real, stop_at_layer=model.cfg.n_layers
        )
    patterns = cache.stack_activation("pattern")
    patterns = patterns if cache.has_batch_dim else patterns[:, None]
    if patterns.shape[1] != len(tokens) or patterns.shape[-1] != tokens.shape[1]:
        raise ValueError(f"the cache holds patterns of shape {patterns.shape[1:]}; the tokens are {tokens.shape}")
    scores = _similarity(patterns, detection[:, None], real[:, None], exclude_bos, exclude_current_token, error_measure)
    return jnp.where(chosen, jnp.mean(scores, axis=1), -1)


def _check_measure(error_measure: str) -> None:
    if error_measure not in ("mul", "abs"):
        raise ValueError(f'error_measure is {error_measure!r}; wanted "mul" or "abs"')


def _read(model: Any, seq: Any) -> tuple[Int[Array, "b p"], Bool[Array, "b p"]]:
    """Tokens, and which of them are not padding; that is on the right, where no query sees it."""
    texts = [seq] if isinstance(seq, str) else seq
    if isinstance(texts, list) and texts and isinstance(texts[0], str):
        tokens = model.to_tokens(texts, padding_side="right")
        lengths = np.array([model.to_tokens(text).shape[1] for text in texts])
    else:
        tokens = jnp.atleast_2d(jnp.asarray(seq))
        lengths = np.full(len(tokens), tokens.shape[1])
    if lengths.min() < 2:
        raise ValueError("a prompt has a single token; heads are told apart from two tokens on")
    return tokens, jnp.asarray(np.arange(tokens.shape[1]) < lengths[:, None])


def _detection_pattern(pattern: Any, tokens: Int[Array, "b p"], error_measure: str) -> Float[Array, "b p s"]:
    n_tokens = tokens.shape[1]
    if isinstance(pattern, str):
        if pattern not in HEAD_NAMES:
            raise ValueError(f"detection_pattern is {pattern!r}; wanted an array or one of {', '.join(HEAD_NAMES)}")
        return _LOOKS[pattern](tokens).reshape(-1, n_tokens, n_tokens)
    pattern = np.asarray(pattern)
    if pattern.shape != (n_tokens, n_tokens) or np.triu(pattern, 1).any():
        raise ValueError(
            f"the detection pattern must be lower triangular, {n_tokens} × {n_tokens} for this prompt of {n_tokens} "
            f"tokens; got shape {pattern.shape}"
        )
    if error_measure == "mul" and not np.isin(pattern, (0, 1)).all():
        warnings.warn('a detection pattern of other values than 0 and 1 is rarely meant for "mul"', stacklevel=3)
    return jnp.asarray(pattern)[None]


def _chosen(heads: Heads | None, n_layers: int, n_heads: int) -> Bool[np.ndarray, "l n"]:
    if heads is None:
        return np.ones((n_layers, n_heads), bool)
    if isinstance(heads, Mapping):
        heads = [(layer, head) for layer, some in heads.items() for head in some]
    chosen = np.zeros((n_layers, n_heads), bool)
    for layer, head in heads:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise ValueError(f"there is no head {head} in layer {layer}; the model has {n_layers} × {n_heads}")
        chosen[layer, head] = True
    return chosen


# --- on random tokens, said twice


def repeated_random_tokens(
    model: Any, batch_size: int = 4, length: int = 50, seed: int = 0, prepend_bos: bool | None = None
) -> Int[Array, "b p"]:
    """Prompts of `length` random tokens and the same again, after a BOS token if that is the model's default.

    Nothing but repetition can be known of them, so what predicts the second half is induction (Olsson et al. 2022,
    arXiv 2209.11895).
    """
    half = np.random.default_rng(seed).integers(0, model.cfg.d_vocab, (batch_size, length))
    bos = [] if (bos := bos_token(model, prepend_bos)) is None else [np.full((batch_size, 1), bos)]
    return jnp.asarray(np.concatenate([*bos, half, half], axis=1), jnp.int32)


def bos_token(model: Any, prepend_bos: bool | None = None, tokenizer: Any = None) -> int | None:
    """The token that a prompt of this model begins with, or None.

    Raises:
        ValueError: one is asked for and there is none.
    """
    tokenizer = model.tokenizer if tokenizer is None else tokenizer
    bos = None if tokenizer is None else tokenizer.bos_token_id
    if prepend_bos and bos is None:
        raise ValueError("prepend_bos=True wants a BOS token; there is no tokenizer, or it has none")
    by_default = model.cfg.default_prepend_bos and getattr(tokenizer, "default_prepend_bos", True)
    return bos if (by_default if prepend_bos is None else prepend_bos) else None


def induction_scores(
    model: Any, batch_size: int = 4, length: int = 50, seed: int = 0, prepend_bos: bool | None = None
) -> Float[Array, "l n"]:
    """How much each head attends from a repeated token to the one after its first occurrence: a mean, 0 to 1.

    Over the second halves of `repeated_random_tokens`, to which the arguments belong.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=16))
        >>> induction_scores(model, length=8).shape
        (2, 2)
    """
    return _looking_back(model, length - 1, length, batch_size=batch_size, seed=seed, prepend_bos=prepend_bos)


def duplicate_token_scores(
    model: Any, batch_size: int = 4, length: int = 50, seed: int = 0, prepend_bos: bool | None = None
) -> Float[Array, "l n"]:
    """How much each head attends from a repeated token to its first occurrence: a mean, 0 to 1.

    Over the second halves of `repeated_random_tokens`, to which the arguments belong.
    """
    return _looking_back(model, length, length, batch_size=batch_size, seed=seed, prepend_bos=prepend_bos)


def previous_token_scores(
    model: Any, batch_size: int = 4, length: int = 50, seed: int = 0, prepend_bos: bool | None = None
) -> Float[Array, "l n"]:
    """How much each head attends from a token to the one before it: a mean, 0 to 1.

    Over all of `repeated_random_tokens`, to which the arguments belong.
    """
    return _looking_back(model, 1, length, batch_size=batch_size, seed=seed, prepend_bos=prepend_bos)


def _looking_back(model: Any, steps: int, length: int, **how: Any) -> Float[Array, "l n"]:
    tokens = repeated_random_tokens(model, length=length, **how)
    _, cache = model.run_with_cache(tokens, names_filter=PATTERNS, stop_at_layer=model.cfg.n_layers)
    first = steps if steps == 1 else tokens.shape[1] - length
    return _mean_attention_back(cache.stack_activation("pattern"), steps, first)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _mean_attention_back(patterns: Float[Array, "l b n p s"], steps: int, first: int) -> Float[Array, "l n"]:
    """The mean attention from each query, from the `first` on, to the source `steps` before it."""
    back = jnp.diagonal(patterns, offset=-steps, axis1=-2, axis2=-1)
    return jnp.mean(back[..., first - steps :], axis=(1, 3))
