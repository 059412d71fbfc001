"""Input checks and formatting shared by all pictures: arrays, token labels, and numbers."""

import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np

MAX_VALUES, MAX_AXIS = 2_000_000, 4096
"""The largest number of values in a picture and along an axis. A page of this size takes several megabytes."""

_REPLACEMENTS = {"\n": "↵", "\r": "␍", "\t": "⇥", " ": " ", "\u200d": "\u200d"}  # U+200D stays because it joins emoji


def as_numbers(values: Any, name: str, *axes: str) -> np.ndarray:
    """The values as a float64 array. `axes` lists the accepted combinations of axes, such as "head dest src"."""
    array = np.asarray(values)
    if array.size and array.dtype.kind in "OSUTcmM":
        first = array.ravel().tolist()[0]
        raise TypeError(f"{name} has entries of type {type(first).__name__}, such as {first!r}; expected real numbers")
    if not array.size or array.ndim not in {len(combination.split()) for combination in axes}:
        expected = " or ".join(f"[{combination}]" for combination in axes)
        raise ValueError(f"{name} has shape {array.shape}; expected {expected}, without empty axes")
    return array.astype(np.float64)


def check_size(array: np.ndarray, name: str) -> None:
    """Raises ValueError if an array is too large for a page."""
    if array.size > MAX_VALUES or max(array.shape) > MAX_AXIS:
        expected = f"at most {MAX_VALUES:,} values and {MAX_AXIS:,} per axis; select fewer entries or sum over an axis"
        raise ValueError(f"{name} has shape {array.shape} and {array.size:,} values; expected {expected}")


def select_prompt(array: Any, batch_idx: int | None, name: str, n_axes: int) -> Any:
    """The entry `batch_idx` of an array with a batch axis and `n_axes` more axes. Without a batch axis, the array."""
    if np.ndim(array) == n_axes + 1:
        return _select_entry(array, batch_idx, name)
    if batch_idx is not None:
        raise ValueError(f"batch_idx is {batch_idx}, but {name} has no batch axis; omit batch_idx")
    return array


def _select_entry(batch: Any, batch_idx: int | None, name: str) -> Any:
    count = len(batch)
    if batch_idx is None and count > 1:
        raise ValueError(f"{name} has {count} prompts; expected 1; index it, or pass batch_idx=0 to {count - 1}")
    if not -count <= (batch_idx or 0) < count:
        raise ValueError(f"batch_idx is {batch_idx}; expected {-count} to {count - 1}, the prompts of {name}")
    return batch[batch_idx or 0]


def as_labels(labels: Iterable[Any] | None, count: int, name: str) -> list[str]:
    """The labels of an axis as strings. By default, the indices of its entries."""
    strings = [str(label) for label in (range(count) if labels is None else labels)]
    if len(strings) != count:
        raise ValueError(f"{name} has {len(strings)} entries; expected {count}, to match the shape of the array")
    return strings


def as_strings(tokens: Any, count: int, model: Any = None, batch_idx: int | None = None) -> list[str]:
    """The strings of `count` tokens. The default is their positions.

    `tokens` are strings, token ids or text. If they are a batch of sequences, `batch_idx` selects a sequence.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if isinstance(tokens, str):
        if tokenizer is None:
            raise ValueError(f"tokens is the text {tokens!r}, which needs a tokenizer; pass model.to_str_tokens(text)")
        tokens = model.to_str_tokens(tokens)
    elif tokens is not None:
        tokens = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
        if tokens and isinstance(tokens[0], list | tuple):
            tokens = _select_entry(tokens, batch_idx, "tokens")
        if tokenizer is not None and not all(isinstance(token, str) for token in tokens):
            tokens = model.to_str_tokens(np.asarray(tokens))
    return as_labels(tokens, count, "tokens")


# --- visible text


def printable(text: str) -> str:
    """The text without invisible characters. "\\n" becomes ↵, and most others become their Python escape.

    Example:
        >>> printable("a\\n\\x07")
        'a↵\\\\x07'
    """
    return "".join(_REPLACEMENTS.get(char) or (char if char.isprintable() else _escaped(char)) for char in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode()


def label(text: str) -> str:
    """The label of a token: its printable form, with a dot for every space at its ends.

    Example:
        >>> label(" Mary")
        '·Mary'
    """
    shown = printable(text)
    inside = shown.strip(" ")
    if not inside:
        return "·" * len(shown) or "∅"
    before = len(shown) - len(shown.lstrip(" "))
    return "·" * before + inside + "·" * (len(shown) - before - len(inside))


def display_width(text: str) -> int:
    """The number of terminal columns that a text occupies."""
    visible = (char for char in text if unicodedata.category(char) not in ("Mn", "Me", "Cf"))
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in visible)


def fit(text: str, width: int, right: bool = False) -> str:
    """The text padded with spaces, or truncated with an ellipsis, to exactly `width` columns."""
    if display_width(text) > width:
        while text and display_width(text) > width - 1:
            text = text[:-1]
        text += "…" * (width > 0)
    space = " " * (width - display_width(text))
    return space + text if right else text + space


# --- numbers


def rounded(values: np.ndarray, digits: int = 4) -> list[Any]:
    """Nested lists of numbers with `digits` significant digits. None replaces NaN and infinity."""
    if values.ndim > 1:
        return [rounded(row, digits) for row in values]
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values.tolist()]


def max_magnitude(values: np.ndarray) -> float:
    """The largest magnitude of the finite values, or 1 if all are zero. It is the default limit of a color scale."""
    return float(np.abs(np.where(np.isfinite(values), values, 0)).max()) or 1.0


def scale_limit(max_value: float | None, default: float) -> float:
    """The limit of a color scale: `max_value`, or `default` if it is None."""
    if max_value is not None and not max_value > 0:
        raise ValueError(f"max_value is {max_value}; expected a positive number")
    return default if max_value is None else float(max_value)
