"""New tokens as text, piece by piece. A character of several tokens comes whole."""

import itertools
from typing import Any

import numpy as np

INCOMPLETE = "�"
"""What the decoder writes for bytes that are no whole character yet."""

CONTEXT = 4
"""So many earlier tokens are decoded with new ones: some tokenizers drop the space of the first token of a text."""


def text_of(tokenizer: Any, ids: Any, skip_special_tokens: bool = False) -> str:
    """The text of tokens. Those that the model has and the tokenizer has not have no text."""
    return tokenizer.decode([i for i in np.asarray(ids).tolist() if i < len(tokenizer)], skip_special_tokens)


class TextStream:
    """The text of new tokens of one row, as it comes."""

    def __init__(self, tokenizer: Any, prompt: list[int]):
        self._tokenizer, self._ids = tokenizer, list(prompt[-CONTEXT:])
        self._written = self._text()

    def _text(self) -> str:
        return text_of(self._tokenizer, self._ids, skip_special_tokens=True)

    def add(self, ids: np.ndarray, is_last: bool = False) -> str:
        """The text that these tokens complete. An incomplete character waits for the next tokens, or for the last."""
        self._ids += np.asarray(ids).tolist()
        whole = self._text()
        text = whole if is_last else whole.rstrip(INCOMPLETE)
        # Where the prompt ends inside a character, its text changes with the tokens that complete it.
        new = text[_n_common(self._written, text) :]
        self._written = text if new else self._written
        if text == whole and len(self._ids) > 2 * CONTEXT:  # earlier text is not decoded again
            self._ids = self._ids[-CONTEXT:]
            self._written = self._text()
        return new


def _n_common(first: str, second: str) -> int:
    """The number of characters with which both texts begin."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return sum(1 for _ in same)
