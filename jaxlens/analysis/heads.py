"""Detects attention heads that attend to previous tokens, to duplicate tokens, by induction, or by any given pattern.

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

from jaxlens.model.cache.activation_cache import ActivationCache
from jaxlens.text.tokenizer import bos_token_id

HeadName = Literal["previous_token_head", "duplicate_token_head", "induction_head"]
ErrorMeasure = Literal["mul", "abs"]
Heads = Iterable[tuple[int, int]] | Mapping[int, Iterable[int]]
PATTERNS = "blocks.*.attn.hook_pattern"
"""The attention patterns of all layers."""

# --- detection patterns


def get_previous_token_head_detection_pattern(tokens: Int[Array, "*b p"]) -> Float[Array, "*b p s"]:
    """1 where the source is the token before the query. A single prompt [1 p] gives [p s].

    Example:
        >>> get_previous_token_head_detection_pattern(np.array([7, 8, 9])).tolist()
        [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    tokens = _without_batch_of_one(tokens)
    return jnp.broadcast_to(jnp.eye(tokens.shape[-1], k=-1), (*tokens.shape, tokens.shape[-1]))


def get_duplicate_token_head_detection_pattern(tokens: Int[Array, "*b p"]) -> Float[Array, "*b p s"]:
    """1 where the source is an earlier occurrence of the query's token. A single prompt [1 p] gives [p s]."""
    tokens = _without_batch_of_one(tokens)
    return jnp.tril(tokens[..., :, None] == tokens[..., None, :], k=-1).astype(jnp.float32)


def get_induction_head_detection_pattern(tokens: Int[Array, "*b p"]) -> Float[Array, "*b p s"]:
    """1 where the source follows an earlier occurrence of the query's token. A single prompt [1 p] gives [p s].

    Induction heads are those of Olsson et al. 2022 (arXiv 2209.11895).

    Example:
        >>> get_induction_head_detection_pattern(np.array([7, 8, 7])).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    # The last column is zero, because the last token precedes no query. So the roll moves no 1 to the first column.
    return jnp.roll(get_duplicate_token_head_detection_pattern(tokens), 1, axis=-1)


def _without_batch_of_one(tokens: Any) -> Int[Array, "*b p"]:
    tokens = jnp.asarray(tokens)
    return tokens[0] if tokens.ndim == 2 and len(tokens) == 1 else tokens


_PATTERNS = {
    "previous_token_head": get_previous_token_head_detection_pattern,
    "duplicate_token_head": get_duplicate_token_head_detection_pattern,
    "induction_head": get_induction_head_detection_pattern,
}
HEAD_NAMES: tuple[HeadName, ...] = tuple(_PATTERNS)


@functools.partial(jax.jit, static_argnums=0)
def _named_pattern(name: HeadName, tokens: Int[Array, "b p"]) -> Float[Array, "b p s"]:
    return _PATTERNS[name](tokens).reshape(-1, tokens.shape[1], tokens.shape[1])


def get_supported_heads() -> None:
    """Prints the names of the built-in detection patterns."""
    print(f"Supported heads: {HEAD_NAMES}")


# --- comparing attention patterns with detection patterns


def compute_head_attention_similarity_score(
    attention_pattern: Float[Array, "... p s"], detection_pattern: Float[Array, "... p s"], *, exclude_bos: bool,
    exclude_current_token: bool, error_measure: ErrorMeasure,
) -> Float[Array, "..."]:  # fmt: skip
    """The similarity of an attention pattern and a detection pattern, both lower triangular.

    "mul" is the fraction of the attention to sources where the detection pattern is 1, or 0 if all attention is left
    out. "abs" is 1 minus the absolute
    difference of the two patterns, summed over sources, averaged over queries and rounded to three decimals; it ranges
    from -1 to 1. `exclude_bos` leaves out the first source, `exclude_current_token` the position of the query.

    Example:
        >>> pattern = jnp.array([[1.0, 0.0], [0.75, 0.25]])
        >>> options = dict(exclude_bos=False, exclude_current_token=True)
        >>> float(compute_head_attention_similarity_score(pattern, jnp.eye(2, k=-1), error_measure="mul", **options))
        1.0
    """
    _check_measure(error_measure)
    pattern = jnp.asarray(attention_pattern)
    if pattern.ndim < 2 or pattern.shape[-1] != pattern.shape[-2]:
        raise ValueError(f"attention_pattern has shape {pattern.shape}; expected [... pos pos]")
    mask = jnp.ones(pattern.shape[-1], bool)
    return _similarity(pattern, jnp.asarray(detection_pattern), mask, exclude_bos, exclude_current_token, error_measure)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _similarity(pattern, detection, mask: Bool[Array, "... p"], exclude_bos, exclude_current_token, error_measure):
    kept = jnp.broadcast_to(mask[..., None], (*mask.shape, mask.shape[-1]))
    kept = kept.at[..., 0].set(False) if exclude_bos else kept
    kept = kept & ~jnp.eye(mask.shape[-1], dtype=bool) if exclude_current_token else kept
    if error_measure == "mul":
        attention = jnp.where(kept, pattern, 0)
        total = jnp.sum(attention, axis=(-2, -1))
        return jnp.sum(attention * detection, axis=(-2, -1)) / jnp.where(total > 0, total, 1)
    difference = jnp.where(kept, jnp.abs(pattern - detection), 0)
    return 1 - jnp.round(jnp.sum(difference, axis=(-2, -1)) / jnp.sum(mask, axis=-1), 3)


def detect_head(
    model: Any, seq: str | list[str] | Int[Array, "b p"], detection_pattern: HeadName | Float[Array, "p s"],
    heads: Heads | None = None, cache: ActivationCache | None = None, *, exclude_bos: bool = False,
    exclude_current_token: bool = False, error_measure: ErrorMeasure = "mul",
) -> Float[Array, "l n"]:  # fmt: skip
    """`compute_head_attention_similarity_score` of every head, averaged over prompts.

    `seq` is tokens or text. A BOS token is prepended to text if this is the model's default. `detection_pattern` is one
    of `HEAD_NAMES` or a lower-triangular array. `heads` selects heads, as (layer, head) pairs or as a dict from layer
    to heads; the other heads score -1. With `cache`, the cache of a run on the same prompts, the model is not run.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> detect_head(model, [[1, 2, 3, 1, 2]], "induction_head", heads=[(1, 0)]).shape
        (2, 2)

    Raises:
        ValueError: The pattern, measure or a head does not exist, the pattern does not fit, or a prompt has one token
            or more than `n_ctx`.
    """
    _check_measure(error_measure)
    tokens, mask = _tokens_and_mask(model, seq)
    detection = _detection_pattern(detection_pattern, tokens, error_measure)
    n_layers = model.cfg.n_layers
    selected = _selection(heads, n_layers, model.cfg.n_heads)
    if cache is None:
        _, cache = model.run_with_cache(tokens, names_filter=PATTERNS, attention_mask=mask, stop_at_layer=n_layers)
    patterns = cache.stack_activation("pattern")
    patterns = patterns if cache.has_batch_dim else patterns[:, None]
    if patterns.shape[1] != len(tokens) or patterns.shape[-1] != tokens.shape[1]:
        shapes = f"patterns of shape {patterns.shape[1:]}, but the tokens have shape {tokens.shape}"
        raise ValueError(f"the cache holds {shapes}; pass the cache of a run on these tokens")
    scores = _similarity(patterns, detection[:, None], mask[:, None], exclude_bos, exclude_current_token, error_measure)
    return jnp.where(selected, jnp.mean(scores, axis=1), -1)


def _check_measure(error_measure: str) -> None:
    if error_measure not in ("mul", "abs"):
        raise ValueError(f'error_measure is {error_measure!r}; expected "mul" or "abs"')


def _tokens_and_mask(model: Any, seq: Any) -> tuple[Int[Array, "b p"], Bool[Array, "b p"]]:
    """The tokens of `seq`, padded on the right (the causal mask hides it), and a mask that is False for padding."""
    texts = [seq] if isinstance(seq, str) else seq
    if isinstance(texts, list) and texts and isinstance(texts[0], str):
        tokens = model.to_tokens(texts, padding_side="right", truncate=False)
        lengths = np.array([model.to_tokens(text, truncate=False).shape[1] for text in texts])
    else:
        tokens = jnp.atleast_2d(jnp.asarray(seq))
        lengths = np.full(len(tokens), tokens.shape[1])
    if lengths.min() < 2:
        raise ValueError("a prompt has a single token; expected two or more tokens")
    if tokens.shape[1] > model.cfg.n_ctx:
        raise ValueError(f"a prompt has {tokens.shape[1]} tokens, more than the model's n_ctx = {model.cfg.n_ctx}")
    return tokens, jnp.asarray(np.arange(tokens.shape[1]) < lengths[:, None])


def _detection_pattern(pattern: Any, tokens: Int[Array, "b p"], error_measure: str) -> Float[Array, "b p s"]:
    square = (tokens.shape[1], tokens.shape[1])
    if isinstance(pattern, str):
        if pattern not in HEAD_NAMES:
            raise ValueError(f"detection_pattern is {pattern!r}; expected an array or one of {', '.join(HEAD_NAMES)}")
        return _named_pattern(pattern, tokens)
    pattern = np.asarray(pattern)
    if pattern.shape != square or np.triu(pattern, 1).any():
        raise ValueError(f"detection_pattern has shape {pattern.shape}; expected {square}, zero above the diagonal")
    if error_measure == "mul" and not np.isin(pattern, (0, 1)).all():
        warnings.warn('detection_pattern has values other than 0 and 1; use error_measure="abs" for it', stacklevel=3)
    return jnp.asarray(pattern)[None]


def _selection(heads: Heads | None, n_layers: int, n_heads: int) -> Bool[np.ndarray, "l n"]:
    if heads is None:
        return np.ones((n_layers, n_heads), bool)
    if isinstance(heads, Mapping):
        heads = [(layer, head) for layer, heads_of_layer in heads.items() for head in heads_of_layer]
    selected = np.zeros((n_layers, n_heads), bool)
    for layer, head in heads:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise ValueError(f"there is no head {head} in layer {layer}; all {n_layers} layers have {n_heads} heads")
        selected[layer, head] = True
    return selected


# --- scores on repeated random tokens


def repeated_random_tokens(
    model: Any, batch_size: int = 4, length: int = 50, seed: int = 0, prepend_bos: bool | None = None
) -> Int[Array, "b p"]:
    """Prompts of `length` random tokens followed by the same tokens again.

    With `prepend_bos` (None: the model's default), a BOS token comes first. Only the repetition can be predicted, so a
    model that predicts the second half does induction (Olsson et al. 2022, arXiv 2209.11895).
    """
    half = np.random.default_rng(seed).integers(0, model.cfg.d_vocab, (batch_size, length))
    bos = bos_token_id(model.cfg, model.tokenizer, prepend_bos)
    first = [] if bos is None else [np.full((batch_size, 1), bos)]
    return jnp.asarray(np.concatenate([*first, half, half], axis=1), jnp.int32)


def induction_scores(
    model: Any, batch_size: int = 4, length: int = 50, seed: int = 0, prepend_bos: bool | None = None
) -> Float[Array, "l n"]:
    """The mean attention of each head from a repeated token to the token after its first occurrence, 0 to 1.

    The mean is over the second halves of the prompts of `repeated_random_tokens`, which has the same arguments.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=16))
        >>> induction_scores(model, length=8).shape
        (2, 2)
    """
    return _attention_back(model, length - 1, -length, length, batch_size, seed, prepend_bos)


def duplicate_token_scores(
    model: Any, batch_size: int = 4, length: int = 50, seed: int = 0, prepend_bos: bool | None = None
) -> Float[Array, "l n"]:
    """The mean attention of each head from a repeated token to its first occurrence, 0 to 1.

    The mean is over the second halves of the prompts of `repeated_random_tokens`, which has the same arguments.
    """
    return _attention_back(model, length, -length, length, batch_size, seed, prepend_bos)


def previous_token_scores(
    model: Any, batch_size: int = 4, length: int = 50, seed: int = 0, prepend_bos: bool | None = None
) -> Float[Array, "l n"]:
    """The mean attention of each head from a token to the token before it, 0 to 1.

    The mean is over the prompts of `repeated_random_tokens`, which has the same arguments.
    """
    return _attention_back(model, 1, 1, length, batch_size, seed, prepend_bos)


def _attention_back(model: Any, steps: int, first: int, length: int, batch_size, seed, prepend_bos):
    """`mean_attention_back` on repeated random tokens. A negative `first` counts from the end."""
    tokens = repeated_random_tokens(model, batch_size, length, seed, prepend_bos)
    everywhere = np.ones(tokens.shape, np.int32)  # a random token may be the pad token
    _, cache = model.run_with_cache(
        tokens, names_filter=PATTERNS, stop_at_layer=model.cfg.n_layers, attention_mask=everywhere
    )
    return mean_attention_back(cache.stack_activation("pattern"), steps, first % tokens.shape[1])


@functools.partial(jax.jit, static_argnums=(1, 2))
def mean_attention_back(patterns: Float[Array, "l b n p s"], steps: int, first: int) -> Float[Array, "l n"]:
    """The mean attention from a query to the source `steps` before it, over queries from position `first` on."""
    back = jnp.diagonal(patterns, offset=-steps, axis1=-2, axis2=-1)
    return jnp.mean(back[..., first - steps :], axis=(1, 3))
