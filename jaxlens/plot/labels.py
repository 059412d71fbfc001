"""What the pictures read and what they call things: numbers out of any array, tokens as strings one can see."""

import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np

MAX_VALUES, MAX_AXIS = 2_000_000, 4096
"""How many numbers a picture holds, and one axis of it: a page with as many is some megabytes."""

_NAMED = {"\n": "↵", "\r": "␍", "\t": "⇥", " ": " ", "\u200d": "\u200d"}  # the last one joins emoji


def as_numbers(values: Any, what: str, *axes: str) -> np.ndarray:
    """An array as float64, with one of the given axes, such as "head dest src".

    Raises:
        TypeError: it is not made of numbers.
        ValueError: it has other axes, or nothing in it.
    """
    array = np.asarray(values)
    if array.size and array.dtype.kind in "OSUTcmM":
        first = array.ravel().tolist()[0]
        raise TypeError(f"{what}: wanted numbers, got {type(first).__name__}, such as {first!r}")
    if not array.size or array.ndim not in {len(names.split()) for names in axes}:
        wanted = " or ".join(f"[{names}]" for names in axes)
        raise ValueError(f"{what} has shape {list(array.shape)}; wanted {wanted}, none of them empty")
    return array.astype(np.float64)


def check_size(array: np.ndarray, what: str) -> None:
    """Raises ValueError if an array is more than a page can hold."""
    if array.size > MAX_VALUES or max(array.shape) > MAX_AXIS:
        raise ValueError(
            f"{what} of shape {list(array.shape)} is {array.size:,} numbers; a picture holds {MAX_VALUES:,} and no "
            f"axis longer than {MAX_AXIS:,}: choose fewer heads, layers or positions, or sum over some"
        )


def one_prompt(array: Any, batch_idx: int | None, what: str, n_axes: int) -> Any:
    """What belongs to one prompt of an array with a batch axis before its other `n_axes`, or with none.

    Raises:
        ValueError: there are several prompts and none is chosen, or the one chosen is not there.
    """
    if np.ndim(array) == n_axes + 1:
        return _chosen(array, batch_idx, what)
    if batch_idx is not None:
        raise ValueError(f"batch_idx={batch_idx} chooses a prompt, but {what} has no batch axis")
    return array


def _chosen(rows: Any, batch_idx: int | None, what: str) -> Any:
    if batch_idx is None and len(rows) > 1:
        raise ValueError(f"{what} of {len(rows)} prompts: choose one, batch_idx=0 to {len(rows) - 1}")
    if not -len(rows) <= (batch_idx or 0) < len(rows):
        raise ValueError(f"batch_idx={batch_idx} is none of the {len(rows)} prompts of {what}")
    return rows[batch_idx or 0]


def as_labels(labels: Iterable[Any] | None, count: int, what: str) -> list[str]:
    """One label for each of `count` things: the ones given, or their numbers.

    Raises:
        ValueError: there are more or fewer labels than things.
    """
    found = [str(one) for one in (range(count) if labels is None else labels)]
    if len(found) != count:
        raise ValueError(f"{len(found)} {what} were given for {count} places; give one for each, or none")
    return found


def read_tokens(tokens: Any, count: int, model: Any = None, batch_idx: int | None = None) -> list[str]:
    """The strings of `count` tokens, from strings, token ids or the text itself; their positions if there are none.

    Of several sequences of tokens `batch_idx` chooses one.

    Raises:
        ValueError: the numbers of tokens and of positions differ, or text is given and no tokenizer is known.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if isinstance(tokens, str):
        if tokenizer is None:
            raise ValueError(f"{tokens!r} is text, and no tokenizer is known here; give model.to_str_tokens(text)")
        tokens = model.to_str_tokens(tokens)
    elif tokens is not None:
        tokens = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
        if tokens and isinstance(tokens[0], list | tuple):
            tokens = _chosen(tokens, batch_idx, "tokens")
        if tokenizer is not None and not all(isinstance(one, str) for one in tokens):
            tokens = model.to_str_tokens(np.asarray(tokens))
    return as_labels(tokens, count, "tokens")


# --- text that can be seen


def printable(text: str) -> str:
    """Text whose control, format and other invisible characters are shown: "\\n" as ↵, others as Python writes them.

    Example:
        >>> printable("a\\n\\x07")
        'a↵\\\\x07'
    """
    return "".join(_NAMED.get(one) or (one if one.isprintable() else _escaped(one)) for one in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode()


def label(text: str) -> str:
    """A token as a label: `printable`, with a dot for every space at its ends.

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


def breadth(text: str) -> int:
    """How many columns of a terminal a text takes."""
    seen = (one for one in text if unicodedata.category(one) not in ("Mn", "Me", "Cf"))
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in seen)


def fitted(text: str, width: int, right: bool = False) -> str:
    """A text made exactly `width` columns wide: filled up with spaces, or cut with an ellipsis."""
    if breadth(text) > width:
        while text and breadth(text) > width - 1:
            text = text[:-1]
        text += "…" * (width > 0)
    space = " " * (width - breadth(text))
    return space + text if right else text + space


# --- numbers that can be read


def rounded(values: np.ndarray, digits: int = 4) -> list[Any]:
    """Nested lists of numbers to so many significant digits; None for what is not finite, which JSON cannot hold."""
    if values.ndim > 1:
        return [rounded(row, digits) for row in values]
    return [float(f"{one:.{digits}g}") if np.isfinite(one) else None for one in values.tolist()]


def largest(values: np.ndarray) -> float:
    """The largest magnitude of the finite numbers, where a colour scale ends; 1 if there are none but zeros."""
    return float(np.abs(np.where(np.isfinite(values), values, 0)).max()) or 1.0


def scale_end(max_value: float | None, default: float) -> float:
    """Where a colour scale ends: at `max_value`, if one is given.

    Raises:
        ValueError: it is not above zero.
    """
    if max_value is not None and not max_value > 0:
        raise ValueError(f"max_value is {max_value}; a scale of colours goes from zero to a number above it")
    return default if max_value is None else float(max_value)
