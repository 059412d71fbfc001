"""How a model does on one prompt, printed.

Axes: p position, v vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def test_prompt(
    prompt: str,
    answer: str | list[str],
    model: Any,
    prepend_space_to_answer: bool = True,
    print_details: bool = True,
    prepend_bos: bool | None = None,
    top_k: int = 10,
) -> None:
    """Prints how highly a model ranks an answer to a prompt: rank (0 is the best), logit and probability of its tokens.

    An answer of several tokens is judged token by token, each after the ones before it; several answers are compared by
    their first tokens. An answer gets a leading space if it has none, unless `prepend_space_to_answer` is False.
    `print_details` prints the tokens too, and the `top_k` likeliest at each place.

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
        ValueError: there is no answer, or one without a token.
    """
    answers = [answer] if isinstance(answer, str) else list(answer)
    if prepend_space_to_answer:
        answers = [one if one.startswith(" ") else f" {one}" for one in answers]
    tokens = [np.asarray(model.to_tokens(one, prepend_bos=False, truncate=False))[0] for one in answers]
    strings = [model.to_str_tokens(one, prepend_bos=False) for one in answers]
    if not answers or not all(strings):
        raise ValueError(f"an answer of at least one token was wanted; got {answer!r}")
    several = len(answers) > 1
    # at each place, the tokens that are judged and how they are written
    tokens = [[one[0] for one in tokens]] if several else tokens[0][:, None]
    written = [[one[0] for one in strings]] if several else [[piece] for piece in strings[0]]
    if print_details:
        print("Tokenized prompt:", model.to_str_tokens(prompt, prepend_bos=prepend_bos))
        print("Tokenized answers:" if several else "Tokenized answer:", strings if several else strings[0])
    given = np.asarray(model.to_tokens(prompt, prepend_bos=prepend_bos))[0]
    given = np.concatenate([given, *(place[:1] for place in tokens[:-1])])
    logits, probabilities, order = map(np.asarray, _ranked(model(given)[0, -len(tokens) :]))
    ranks = []
    for place, (judged, names) in enumerate(zip(tokens, written, strict=True)):
        found = [int(np.flatnonzero(order[place] == token)[0]) for token in judged]
        ranks.append(list(zip(names, found, strict=True)))
        if print_details:
            print(f"Performance on answer token{'s' if several else ''}:")
            for rank, token, name in zip(found, judged, names, strict=True):
                print(f"Rank: {rank:<8}", _line(logits[place, token], probabilities[place, token], name))
            for rank, token in enumerate(order[place, :top_k]):
                name = model.to_string([token]) if token < len(model.tokenizer) else ""  # filled-up vocabularies
                print(f"Top {rank}th token.", _line(logits[place, token], probabilities[place, token], name))
    print("Ranks of the answer tokens:", ranks if several else [rank for (rank,) in ranks])


test_prompt.__test__ = False  # its name is not to make it a test


def _line(logit: float, probability: float, name: str) -> str:
    return f"Logit: {logit:5.2f} Prob: {probability:6.2%} Token: |{name}|"


@jax.jit
def _ranked(logits: Float[Array, "p v"]):
    """Logits, probabilities, and tokens from the likeliest on."""
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return wide, jax.nn.softmax(wide, axis=-1), jnp.argsort(-wide, axis=-1, stable=True)
