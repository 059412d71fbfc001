"""Attention patterns: who reads from whom, head by head.

Axes: b batch, n head, p destination (query) position, s source position, l layer.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxlens.analysis.activation_cache import ActivationCache
from jaxlens.plot.colours import on_colour
from jaxlens.plot.heatmaps import draw_cells, draw_scale
from jaxlens.plot.labels import (
    as_labels,
    as_numbers,
    check_size,
    fitted,
    label,
    largest,
    one_prompt,
    printable,
    read_tokens,
    scale_end,
)
from jaxlens.plot.picture import Drawing
from jaxlens.plot.terminal import Axis, grid

STEPS = 1000
"""Into how many steps a page divides the largest weight; `data` is not rounded."""

FEW = 12
"""How many heads of an image have the names of their tokens."""


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class AttentionPatterns(Drawing):
    """The patterns of some heads: values [head dest src]."""

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
        """Whether nothing is attended to that comes later; such cells are then left out rather than shown as zero."""
        later = np.triu(np.where(np.isfinite(self.values), self.values, 0), 1)
        return len(self.tokens) > 1 and not later.any()

    def _signed(self) -> bool:
        return bool((self.values < 0).any())

    def _visible(self) -> Float[np.ndarray, "n p s"]:
        return np.where(np.tri(len(self.tokens), dtype=bool), self.values, np.nan) if self._causal() else self.values

    def _shown(self) -> dict[str, Any]:
        """Weights as whole numbers of steps, row by row; the row of a causal pattern ends at its diagonal."""
        step, causal = _unit(self.values) / STEPS, self._causal()
        whole = np.where(np.isfinite(self.values), np.rint(self.values / step), np.nan)
        heads = [
            [
                [None if one != one else int(one) for one in row[: place + 1 if causal else None].tolist()]
                for place, row in enumerate(head)
            ]
            for head in whole
        ]
        tokens = [printable(one) for one in self.tokens]
        return {
            "tokens": tokens, "names": self.heads, "heads": heads, "step": step, "limit": self.limit,
            "signed": self._signed(),
        }  # fmt: skip

    def _lines(self, width: int, ansi: bool) -> list[str]:
        if len(self.heads) == 1:
            rows, columns = Axis("from", self.tokens), Axis("to", self.tokens)
            return grid(rows, columns, self._visible()[0], self.limit, width, ansi)
        head = max(len("head"), *map(len, self.heads))
        places = ("to first", "to previous", "to itself")
        lines = [f"{'head':{head}}  {'  '.join(places)}  strongest"]
        for name, values in zip(self.heads, self.values, strict=True):
            looks = self._looks(values)
            numbers = [f"{value:{2 + size}.3f}" for value, size in zip(looks, map(len, places), strict=True)]
            cells = [on_colour(*pair) for pair in zip(numbers, looks / self.limit, strict=True)] if ansi else numbers
            room = width - len(lines[0]) + len("strongest")
            lines.append(f"{name:{head}}" + "".join(cells) + "  " + fitted(self._strongest(values), room).rstrip())
        return lines

    def _looks(self, values: Float[np.ndarray, "p s"]) -> Float[np.ndarray, "3"]:
        """The mean weights of a head on the first token, the one before and the token itself, from the second on."""
        if len(self.tokens) == 1:
            return np.full(3, values[0, 0])
        return np.array([values[1:, 0].mean(), np.diagonal(values, -1).mean(), np.diagonal(values)[1:].mean()])

    def _strongest(self, values: Float[np.ndarray, "p s"], count: int = 3) -> str:
        """The largest weights of a head but for those on the first token, where heads rest."""
        size = np.where(np.isfinite(values), np.abs(values), -1.0)
        size[:, 0] = -1
        places = [np.unravel_index(place, size.shape) for place in np.argsort(-size, axis=None)[:count]]
        names = [label(one) for one in self.tokens]
        found = [f"{names[p]} → {names[s]} {values[p, s]:.2f}" for p, s in places if size[p, s] > 0]
        return ", ".join(found)

    def _grid(self) -> tuple[int, int]:
        """Rows and columns of heads in an image."""
        across = math.ceil(math.sqrt(len(self.heads))) if len(self.heads) <= FEW else 9
        return -(-len(self.heads) // across), across

    def _inches(self) -> tuple[float, float]:
        (down, across), few = self._grid(), len(self.heads) <= FEW
        side = min(5.0, 10 / across)
        return across * (side + 0.6 * few) + 1, down * (side + 0.7 * few) + 0.4

    def _pixels(self) -> int:
        thumbnails = min(300, -(-len(self.heads) // 10) * 96) if len(self.heads) > 1 else 0
        return thumbnails + 32 * (1 + len(self.tokens) // 14) + max(100, min(26 * len(self.tokens), 720)) + 230

    def _draw(self, figure: Any) -> None:
        if len(self.heads) > FEW:
            self._draw_many(figure)
            return
        panels = figure.subplots(*self._grid(), squeeze=False)
        axis, shown = Axis("", self.tokens), self._visible()
        for panel, values, name in zip(panels.flat, shown, self.heads, strict=False):
            image = draw_cells(panel, values, axis, axis, self.limit, self._signed())
            panel.set_aspect("equal")
            panel.set_title(name, loc="left", fontsize=9, parse_math=False)
        for panel in panels.flat[len(shown) :]:
            panel.set_visible(False)
        draw_scale(image, panels, "attention", self._inches()[1])

    def _draw_many(self, figure: Any) -> None:
        """All heads as tiles of one image, without the names of tokens."""
        (down, across), size = self._grid(), len(self.tokens)
        step = size + 2 + size // 6
        tiles, panel = np.full((down * step, across * step), np.nan), figure.subplots()
        for number, (name, values) in enumerate(zip(self.heads, self._visible(), strict=True)):
            top, left = step * (number // across), step * (number % across)
            tiles[top : top + size, left : left + size] = values
            panel.text(left, top - 1, name, fontsize=7, parse_math=False)
        rows, columns = (Axis("", [""] * length) for length in tiles.shape)
        image = draw_cells(panel, tiles, rows, columns, self.limit, self._signed())
        panel.set(aspect="equal", xticks=[], yticks=[])
        draw_scale(image, panel, "attention", self._inches()[1])


def _unit(values: np.ndarray) -> float:
    """Where the scale of weights ends: 1 for probabilities, else the largest magnitude."""
    probable = np.all((values >= 0) & (values <= 1 + 1e-6) | ~np.isfinite(values))
    return 1.0 if probable else largest(values)


def attention_patterns(
    attention: Float[Any, "n p s"] | Float[Any, "p s"] | ActivationCache,
    tokens: Any = None,
    *,
    layer: int | Sequence[int] | None = None,
    heads: Sequence[int] | Sequence[tuple[int, int]] | None = None,
    attention_head_names: Sequence[str] | None = None,
    batch_idx: int | None = None,
    max_value: float | None = None,
    title: str = "",
) -> AttentionPatterns:
    """The attention patterns of some heads: thumbnails to choose from, the text, and the chosen head's weights.

    `attention` is an array [head dest src], of one head [dest src], with a batch axis before them, or a cache: of that
    the heads of `layer` (a number or several), or the `heads` given as pairs (layer, head), or all. `heads` chooses
    numbers of an array or of one layer. `tokens` are strings, token ids or, with a cache whose model has a tokenizer,
    the text itself; without them positions are numbered. `batch_idx` chooses the prompt of a batch. Differences of
    patterns have colours for either sign; scores that are -inf are left blank.

    Raises:
        ValueError: shapes, heads, tokens and names do not fit each other, or it is more than a page can hold.
        ActivationNotFound: the cache holds no pattern of a layer.

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
        raise ValueError(f"layer={layer} chooses from a cache; this is an array of patterns")
    else:
        array, names = _from_array(attention, heads, batch_idx)
    check_size(array, "attention")
    if array.shape[1] != array.shape[2]:
        raise ValueError(f"{array.shape[1]} destinations attend to {array.shape[2]} sources; heatmap(...) shows those")
    if attention_head_names is not None:
        names = as_labels(attention_head_names, len(array), "attention_head_names")
    strings = read_tokens(tokens, array.shape[1], getattr(attention, "model", None), batch_idx)
    limit = scale_end(max_value, _unit(array))
    default = f"Attention of head {names[0]}" if len(names) == 1 else f"Attention of {len(names)} heads"
    return AttentionPatterns(array, strings, names, limit, title or default)


attention_pattern = attention_heads = attention_patterns


def _from_array(attention: Any, heads: Any, batch_idx: int | None) -> tuple[Float[np.ndarray, "n p s"], list[str]]:
    axes = ("dest src", "head dest src", "batch head dest src")
    array = one_prompt(as_numbers(attention, "attention", *axes), batch_idx, "attention", 3)
    array = array[None] if array.ndim == 2 else array
    chosen = range(len(array)) if heads is None else [_number(one, len(array), "head") for one in heads]
    return array[list(chosen)], [str(one) for one in chosen]


def _from_cache(
    cache: ActivationCache, layer: Any, heads: Any, batch_idx: int | None
) -> tuple[Float[np.ndarray, "n p s"], list[str]]:
    pairs = _pairs(cache, layer, heads)
    patterns = {
        one: as_numbers(one_prompt(cache["pattern", one], batch_idx, "the pattern", 3), "the pattern", "head dest src")
        for one in {layer for layer, _ in pairs}
    }
    return np.stack([patterns[layer][head] for layer, head in pairs]), [f"{layer}.{head}" for layer, head in pairs]


def _pairs(cache: ActivationCache, layer: Any, heads: Any) -> list[tuple[int, int]]:
    """The heads to show, as (layer, head)."""
    n_layers, n_heads = cache.cfg.n_layers, cache.cfg.n_heads
    if heads is not None and layer is None:
        if any(np.ndim(one) != 1 or len(one) != 2 for one in heads):
            raise ValueError(f"heads={heads} of which layer? give layer=..., or heads as pairs (layer, head)")
        return [(_number(one, n_layers, "layer"), _number(head, n_heads, "head")) for one, head in heads]
    layers = [layer] if np.ndim(layer) == 0 else layer
    if layer is None:
        layers = [one for one in range(n_layers) if ("pattern", one) in cache] or [0]
    chosen = range(n_heads) if heads is None else heads
    return [(_number(one, n_layers, "layer"), _number(head, n_heads, "head")) for one in layers for head in chosen]


def _number(value: Any, count: int, what: str) -> int:
    """A layer or head that there is; negative ones count from the end."""
    if np.ndim(value) or not -count <= value < count:
        raise ValueError(f"{what} {value} is none of the {count}; they are numbered 0 to {count - 1}")
    return int(value) % count
