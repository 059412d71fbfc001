"""Attention patterns of heads.

Axes: b batch, n head, p destination (query) position, s source position, l layer.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxlens.model.cache.activation_cache import ActivationCache
from jaxlens.plot.colours import with_background
from jaxlens.plot.heatmaps import draw_cells, draw_scale
from jaxlens.plot.labels import (
    as_labels,
    as_numbers,
    as_strings,
    check_size,
    fit,
    label,
    max_magnitude,
    printable,
    scale_limit,
    select_prompt,
)
from jaxlens.plot.picture import Drawing
from jaxlens.plot.terminal import Axis, grid

STEPS = 1000
"""A page rounds weights to multiples of `_natural_limit(values) / STEPS`. `data` is not rounded."""

MAX_LABELLED_HEADS = 12
"""An image of more heads has no token labels."""

INCHES_PER_CHARACTER = 0.06
"""The width of a character of a token label in an image."""


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class AttentionPatterns(Drawing):
    """Attention patterns: `values` [head dest src]."""

    values: Float[np.ndarray, "n p s"]
    tokens: list[str]
    heads: list[str]
    limit: float
    title: str
    kind = "attention"

    @property
    def data(self) -> dict[str, Any]:
        return {"attention": self.values, "tokens": self.tokens, "heads": self.heads}

    def _causal(self) -> bool:
        """Whether all weights on later tokens are zero. If they are, they are drawn blank."""
        later = np.triu(np.where(np.isfinite(self.values), self.values, 0), 1)
        return len(self.tokens) > 1 and not later.any()

    def _signed(self) -> bool:
        return bool((self.values < 0).any())

    def _with_blanks(self) -> Float[np.ndarray, "n p s"]:
        """The weights, with NaN on later tokens if the patterns are causal."""
        return np.where(np.tri(len(self.tokens), dtype=bool), self.values, np.nan) if self._causal() else self.values

    def _page_data(self) -> dict[str, Any]:
        """The weights as multiples of a step. The rows of causal patterns end at the diagonal."""
        step, causal = _natural_limit(self.values) / STEPS, self._causal()
        steps = np.where(np.isfinite(self.values), np.rint(self.values / step), np.nan)
        ends = range(1, len(self.tokens) + 1) if causal else [None] * len(self.tokens)
        rows = [[row[:end].tolist() for row, end in zip(head, ends, strict=True)] for head in steps]
        heads = [[[None if math.isnan(value) else int(value) for value in row] for row in head] for head in rows]
        tokens = [printable(token) for token in self.tokens]
        scale = {"step": step, "limit": self.limit, "signed": self._signed()}
        return {"tokens": tokens, "names": self.heads, "heads": heads, **scale}

    def _text_lines(self, width: int, ansi: bool) -> list[str]:
        if len(self.heads) == 1:
            rows, columns = Axis("from", self.tokens), Axis("to", self.tokens)
            return grid(rows, columns, self._with_blanks()[0], self.limit, width, ansi)
        name_width = max(len("head"), *map(len, self.heads))
        columns = ("to first", "to previous", "to itself")
        lines = [f"{'head':{name_width}}  {'  '.join(columns)}  strongest"]
        for name, values in zip(self.heads, self.values, strict=True):
            means = self._mean_weights(values)
            cells = [f"{value:{2 + size}.3f}" for value, size in zip(means, map(len, columns), strict=True)]
            if ansi:
                cells = [with_background(*pair) for pair in zip(cells, means / self.limit, strict=True)]
            strongest = fit(self._strongest(values), width - len(lines[0]) + len("strongest")).rstrip()
            lines.append(f"{name:{name_width}}{''.join(cells)}  {strongest}")
        return lines

    def _mean_weights(self, values: Float[np.ndarray, "p s"]) -> Float[np.ndarray, "3"]:
        """The mean weights on the first token, the previous token and the token itself, except for the first query."""
        if len(self.tokens) == 1:
            return np.full(3, values[0, 0])
        return np.array([values[1:, 0].mean(), np.diagonal(values, -1).mean(), np.diagonal(values)[1:].mean()])

    def _strongest(self, values: Float[np.ndarray, "p s"], count: int = 3) -> str:
        """The largest weights of a head as text, without those on the first token, to which many heads attend."""
        size = np.where(np.isfinite(values), np.abs(values), -1.0)
        size[:, 0] = -1
        cells = [np.unravel_index(index, size.shape) for index in np.argsort(-size, axis=None)[:count]]
        names = [label(token) for token in self.tokens]
        return ", ".join(f"{names[p]} → {names[s]} {values[p, s]:.2f}" for p, s in cells if size[p, s] > 0)

    def _panel_grid(self) -> tuple[int, int]:
        """The number of rows and of columns of heads in an image."""
        across = math.ceil(math.sqrt(len(self.heads))) if len(self.heads) <= MAX_LABELLED_HEADS else 9
        return -(-len(self.heads) // across), across

    def _image_size(self) -> tuple[float, float]:
        (down, across), side = self._panel_grid(), min(5.0, 10 / self._panel_grid()[1])
        longest = max(map(len, Axis("", self.tokens).display_labels))
        names = 0.2 + INCHES_PER_CHARACTER * longest if len(self.heads) <= MAX_LABELLED_HEADS else 0
        return across * (side + names) + 1, down * (side + names + 0.2) + 0.4

    def _page_height(self) -> int:
        thumbnails = min(300, -(-len(self.heads) // 10) * 96) if len(self.heads) > 1 else 0
        return thumbnails + 32 * (1 + len(self.tokens) // 14) + max(100, min(26 * len(self.tokens), 720)) + 230

    def _draw(self, figure: Any) -> None:
        if len(self.heads) > MAX_LABELLED_HEADS:
            self._draw_tiles(figure)
            return
        panels = figure.subplots(*self._panel_grid(), squeeze=False)
        axis, patterns = Axis("", self.tokens), self._with_blanks()
        for panel, values, name in zip(panels.flat, patterns, self.heads, strict=False):
            image = draw_cells(panel, values, axis, axis, self.limit, self._signed())
            panel.set_aspect("equal")
            panel.set_title(name, loc="left", fontsize=9, parse_math=False)
        for panel in panels.flat[len(patterns) :]:
            panel.set_visible(False)
        draw_scale(image, panels, "attention", self._image_size()[1])

    def _draw_tiles(self, figure: Any) -> None:
        """Draws all heads as tiles of a single image, without token labels."""
        (down, across), size = self._panel_grid(), len(self.tokens)
        step = size + 2 + size // 6
        tiles, panel = np.full((down * step, across * step), np.nan), figure.subplots()
        for index, (name, values) in enumerate(zip(self.heads, self._with_blanks(), strict=True)):
            top, left = step * (index // across), step * (index % across)
            tiles[top : top + size, left : left + size] = values
            panel.text(left, top - 1, name, fontsize=7, parse_math=False)
        rows, columns = (Axis("", [""] * length) for length in tiles.shape)
        image = draw_cells(panel, tiles, rows, columns, self.limit, self._signed())
        panel.set(aspect="equal", xticks=[], yticks=[])
        draw_scale(image, panel, "attention", self._image_size()[1])


def _natural_limit(values: np.ndarray) -> float:
    """1 for probabilities, otherwise the largest magnitude."""
    are_probabilities = np.all((values >= 0) & (values <= 1 + 1e-6) | ~np.isfinite(values))
    return 1.0 if are_probabilities else max_magnitude(values)


def attention_patterns(
    attention: Float[Any, "n p s"] | Float[Any, "p s"] | ActivationCache, tokens: Any = None, *,
    layer: int | Sequence[int] | None = None, heads: Sequence[int] | Sequence[tuple[int, int]] | None = None,
    attention_head_names: Sequence[str] | None = None, batch_idx: int | None = None, max_value: float | None = None,
    title: str = "",
) -> AttentionPatterns:  # fmt: skip
    """The attention patterns of heads. A page shows thumbnails, the text, and the weights of the selected head.

    `attention` is an array [dest src], [head dest src] or [batch head dest src], or a cache. `batch_idx` selects a
    prompt, and `heads` selects heads by index. For a cache, `layer` (an integer or a sequence) selects the layers of
    these heads. Without `layer`, `heads` contains pairs (layer, head). By default, all heads are shown.

    `tokens` are strings or token ids, or text if the model of the cache has a tokenizer. The default is the positions.
    Negative values, as in the difference of two patterns, are orange. Values of -inf are blank.

    Raises:
        ValueError: The shapes, heads, tokens or names do not match, or the array is too large for a page.
        ActivationNotFound: The cache does not contain the patterns of a selected layer.

    Example:
        >>> import numpy as np
        >>> from jaxlens import plot
        >>> picture = plot.attention_patterns(np.tri(3) / [[1], [2], [3]], tokens=["<s>", "a", " b"])
        >>> print(picture.text(width=60, ansi=False))
        Attention of head 0
              to
        from   <s>     a    ·b
        <s>   1.00
        a     0.50  0.50
        ·b    0.33  0.33  0.33
    """
    if isinstance(attention, ActivationCache):
        array, names = _from_cache(attention, layer, heads, batch_idx)
    elif layer is not None:
        raise ValueError(f"layer is {layer}, but attention is an array; expected a cache; omit layer and use heads=")
    else:
        array, names = _from_array(attention, heads, batch_idx)
    check_size(array, "attention")
    if array.shape[1] != array.shape[2]:
        raise ValueError(f"attention has shape {array.shape}; expected equal dest and src axes, or use heatmap()")
    if attention_head_names is not None:
        names = as_labels(attention_head_names, len(array), "attention_head_names")
    strings = as_strings(tokens, array.shape[1], getattr(attention, "model", None), batch_idx)
    limit = scale_limit(max_value, _natural_limit(array))
    default = f"Attention of head {names[0]}" if len(names) == 1 else f"Attention of {len(names)} heads"
    return AttentionPatterns(array, strings, names, limit, title or default)


attention_pattern = attention_heads = attention_patterns


def _from_array(attention: Any, heads: Any, batch_idx: int | None) -> tuple[Float[np.ndarray, "n p s"], list[str]]:
    axes = ("dest src", "head dest src", "batch head dest src")
    array = select_prompt(as_numbers(attention, "attention", *axes), batch_idx, "attention", 3)
    array = array[None] if array.ndim == 2 else array
    indices = range(len(array)) if heads is None else [_checked_index(head, len(array), "head") for head in heads]
    return array[list(indices)], [str(head) for head in indices]


def _from_cache(
    cache: ActivationCache, layer: Any, heads: Any, batch_idx: int | None
) -> tuple[Float[np.ndarray, "n p s"], list[str]]:
    pairs = _selected_heads(cache, layer, heads)
    patterns = {}
    for index in {index for index, _ in pairs}:
        pattern = select_prompt(cache["pattern", index], batch_idx, "the pattern", 3)
        patterns[index] = as_numbers(pattern, "the pattern", "head dest src")
    return np.stack([patterns[index][head] for index, head in pairs]), [f"{index}.{head}" for index, head in pairs]


def _selected_heads(cache: ActivationCache, layer: Any, heads: Any) -> list[tuple[int, int]]:
    """The selected heads as pairs (layer, head)."""
    n_layers, n_heads = cache.cfg.n_layers, cache.cfg.n_heads
    if heads is not None and layer is None:
        if any(np.ndim(pair) != 1 or len(pair) != 2 for pair in heads):
            raise ValueError(f"heads is {heads} and layer is None; expected pairs (layer, head); pass them or layer=")
        pairs = heads
    else:
        layers = [layer] if np.ndim(layer) == 0 else layer
        if layer is None:
            layers = [index for index in range(n_layers) if ("pattern", index) in cache] or [0]
        pairs = [(index, head) for index in layers for head in (range(n_heads) if heads is None else heads)]
    return [(_checked_index(index, n_layers, "layer"), _checked_index(head, n_heads, "head")) for index, head in pairs]


def _checked_index(value: Any, count: int, name: str) -> int:
    """The index of a layer or head. Negative indices count from the end."""
    if np.ndim(value) or not -count <= value < count:
        raise ValueError(f"{name} is {value}; expected {-count} to {count - 1}")
    return int(value) % count
