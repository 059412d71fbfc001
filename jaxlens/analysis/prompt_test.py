"""Prints how well a model predicts the answer to one prompt.

Axes: p position, v vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens._jax import on_host, wide


def test_prompt(
    prompt: str, answer: str | list[str], model: Any, prepend_space_to_answer: bool = True, print_details: bool = True,
    prepend_bos: bool | None = None, top_k: int = 10,
) -> None:  # fmt: skip
    """Prints how a model ranks the answer to a prompt: rank (0 is the best), logit and probability of its tokens.

    Each token of an answer is ranked given the tokens before it. Several answers are compared by their first tokens. A
    space is prepended to an answer that does not start with a space, unless `prepend_space_to_answer` is False. With
    `print_details`, the tokens and the `top_k` likeliest tokens at each position are printed too.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> import jaxlens
        >>> words = Tokenizer(models.WordLevel({"<s>": 0, "the": 1, "cat": 2, "sat": 3}, unk_token="<s>"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> cfg = jaxlens.Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_vocab=4, n_ctx=8)
        >>> model = jaxlens.HookedTransformer(cfg, jaxlens.Tokenizer(words, bos_token="<s>"))
        >>> model = model.with_params({name: jnp.zeros_like(w) for name, w in model.params.items()})
        >>> test_prompt("the cat", "sat", model, top_k=1)
        Tokenized prompt: ['<s>', 'the', 'cat']
        Tokenized answer: ['sat']
        Performance on answer token:
        Rank: 3        Logit:  0.00 Prob: 25.00% Token: |sat|
        Top 0th token. Logit:  0.00 Prob: 25.00% Token: |<s>|
        Ranks of the answer tokens: [('sat', 3)]

    Raises:
        ValueError: There is no answer, or an answer has no tokens.
    """
    answers = [answer] if isinstance(answer, str) else list(answer)
    if prepend_space_to_answer:
        answers = [text if text.startswith(" ") else f" {text}" for text in answers]
    ids = [np.asarray(model.to_tokens(text, prepend_bos=False, truncate=False))[0] for text in answers]
    strings = [model.to_str_tokens(text, prepend_bos=False) for text in answers]
    if not answers or not all(strings):
        raise ValueError(f"answer is {answer!r}; expected at least one answer, of at least one token each")
    several = len(answers) > 1
    # For each position, the tokens to rank and their strings.
    ranked = [[tokens[0] for tokens in ids]] if several else ids[0][:, None]
    names = [[tokens[0] for tokens in strings]] if several else [[string] for string in strings[0]]
    if print_details:
        print("Tokenized prompt:", model.to_str_tokens(prompt, prepend_bos=prepend_bos))
        print("Tokenized answers:" if several else "Tokenized answer:", strings if several else strings[0])
    tokens = np.asarray(model.to_tokens(prompt, prepend_bos=prepend_bos))[0]
    tokens = np.concatenate([tokens, *(row[:1] for row in ranked[:-1])])
    logits, probabilities, order = map(on_host, _sorted_predictions(model(tokens)[0, -len(ranked) :]))
    ranks = []
    for row, (row_tokens, row_names) in enumerate(zip(ranked, names, strict=True)):
        row_ranks = [int(np.flatnonzero(order[row] == token)[0]) for token in row_tokens]
        ranks.append(list(zip(row_names, row_ranks, strict=True)))
        if print_details:
            print(f"Performance on answer token{'s' if several else ''}:")
            for rank, token, name in zip(row_ranks, row_tokens, row_names, strict=True):
                print(f"Rank: {rank:<8}", _line(logits[row, token], probabilities[row, token], name))
            for rank, token in enumerate(order[row, :top_k]):
                name = model.to_string([token]) if token < len(model.tokenizer) else ""  # padding of the vocabulary
                print(f"Top {rank}th token.", _line(logits[row, token], probabilities[row, token], name))
    print("Ranks of the answer tokens:", ranks if several else [rank for (rank,) in ranks])


test_prompt.__test__ = False  # tells pytest that this is not a test


def _line(logit: float, probability: float, name: str) -> str:
    return f"Logit: {logit:5.2f} Prob: {probability:6.2%} Token: |{name}|"


@jax.jit
def _sorted_predictions(logits: Float[Array, "p v"]):
    """Logits, probabilities, and the tokens in descending order of probability."""
    logits = wide(logits)
    return logits, jax.nn.softmax(logits, axis=-1), jnp.argsort(-logits, axis=-1, stable=True)
