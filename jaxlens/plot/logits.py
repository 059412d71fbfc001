"""What the model would say: after each layer at each position, and of each token of a text.

Axes: b batch, l layer, p position, d d_model, v vocabulary, k rank among the likeliest.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens.analysis.activation_cache import ActivationCache
from jaxlens.plot.colours import is_dark
from jaxlens.plot.heatmaps import as_shown, draw_cells, draw_scale
from jaxlens.plot.labels import as_labels, as_numbers, check_size, label, one_prompt, printable, read_tokens, rounded
from jaxlens.plot.picture import Drawing
from jaxlens.plot.terminal import Axis, words
from jaxlens.plot.tokens import ColoredTokens


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class LogitLens(Drawing):
    """The likeliest next tokens after each layer at each position, the likeliest first."""

    probabilities: Float[np.ndarray, "l p k"]
    ids: Int[np.ndarray, "l p k"]
    strings: dict[int, str]
    rows: Axis
    columns: Axis
    title: str
    kind = "lens"

    @property
    def data(self) -> dict[str, Any]:
        strings = [[[self.strings[one] for one in of] for of in row] for row in self.ids.tolist()]
        labels = {"layers": self.rows.labels, "tokens": self.columns.labels}
        return {"probabilities": self.probabilities, "ids": self.ids, "strings": strings, **labels}

    def _shown(self) -> dict[str, Any]:
        """Every string once, and where it is said the number of it."""
        known = {one: number for number, one in enumerate(self.strings)}
        numbers = [[[known[one] for one in of] for of in row] for row in self.ids.tolist()]
        axes = {"rows": as_shown(self.rows), "columns": as_shown(self.columns)}
        strings = [printable(one) for one in self.strings.values()]
        return {**axes, "strings": strings, "ids": numbers, "probabilities": rounded(self.probabilities, 3)}

    def _best(self) -> list[list[str]]:
        return [[label(self.strings[one]) for one in row] for row in self.ids[..., 0].tolist()]

    def _lines(self, width: int, ansi: bool) -> list[str]:
        best = self.probabilities[..., 0]
        cells = [
            [f"{text[:8]} {value:.0%}" for text, value in zip(*row, strict=True)]
            for row in zip(self._best(), best, strict=True)
        ]
        return words(self.rows, self.columns, cells, best, width, ansi)

    def _inches(self) -> tuple[float, float]:
        return 1.5 + 0.72 * len(self.columns.labels), 1.3 + 0.22 * len(self.rows.labels)

    def _pixels(self) -> int:
        return 22 * len(self.rows.labels) + 130

    def _draw(self, figure: Any) -> None:
        panel, best = figure.subplots(), self.probabilities[..., 0]
        image = draw_cells(panel, best, self.rows, self.columns, 1.0, False)
        for (row, column), value in np.ndenumerate(best):
            text, colour = self._best()[row][column], "white" if is_dark(value) else "black"
            text = text if len(text) < 11 else text[:9] + "…"
            panel.text(column, row, text, ha="center", va="center", fontsize=6, color=colour, parse_math=False)
        draw_scale(image, panel, "probability", self._inches()[1])


def logit_lens(
    logits: Float[Any, "l p v"] | ActivationCache,
    tokens: Any = None,
    *,
    top_k: int = 5,
    to_string: Callable[[int], str] | None = None,
    ylabels: Sequence[Any] | None = None,
    batch_idx: int | None = None,
    title: str = "",
) -> LogitLens:
    """What the model would say if it stopped after each layer: the logit lens (nostalgebraist, 2020).

    `logits` is an array [layer pos d_vocab], or a cache that holds `resid_post` of every layer, which the model's own
    last norm and unembedding then read, one layer at a time. Every cell names the likeliest next token; pointed at, it
    names `top_k`. `tokens` are those of the prompt, as in `attention_patterns`. `to_string` turns an id into text; of a
    cache the tokenizer does.

    Raises:
        ValueError: shapes and tokens do not fit each other, or several prompts and none chosen by `batch_idx`.
        ActivationNotFound: the cache does not hold `resid_post` of every layer.

    Example:
        >>> import jaxlens
        >>> from jaxlens import plot
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> _, cache = model.run_with_cache([[1, 2, 3]])
        >>> plot.logit_lens(cache, [1, 2, 3], top_k=4).data["probabilities"].shape
        (2, 3, 4)
    """
    model = None
    if isinstance(logits, ActivationCache):
        model = logits.model
        if model is None:
            raise ValueError("the cache has lost its model in a transformation; give logits [layer pos d_vocab]")
        residuals = logits.stack_activation("resid_post")
        residuals = jnp.moveaxis(residuals, 1, 0) if residuals.ndim == 4 else residuals
        found = _read(model, one_prompt(residuals, batch_idx, "the cache", 3), min(top_k, model.cfg.d_vocab_out))
        if to_string is None and model.tokenizer is not None:
            to_string = functools.partial(_string, model)
    else:
        array = one_prompt(logits, batch_idx, "logits", 3)
        if np.ndim(array) != 3 or not np.size(array):
            raise ValueError(f"logits have shape {list(np.shape(array))}; wanted [layer pos d_vocab]")
        found = _likeliest(jnp.asarray(array), min(top_k, array.shape[-1]))
    probabilities, ids = (np.asarray(one) for one in found)
    check_size(probabilities, "the logit lens")
    strings = {one: (to_string or str)(one) for one in np.unique(ids).tolist()}
    columns = Axis("position", read_tokens(tokens, ids.shape[1], model, batch_idx))
    rows = Axis("layer", as_labels(ylabels, len(ids), "ylabels"))
    return LogitLens(probabilities.astype(np.float64), ids, strings, rows, columns, title or "Logit lens")


def _string(model: Any, token: int) -> str:
    """A token as text; a vocabulary may be padded with ids that the tokenizer does not have."""
    return model.to_single_str_token(token) if token < len(model.tokenizer) else f"[{token}]"


@functools.partial(jax.jit, static_argnums=1)
def _likeliest(logits: Float[Array, "... v"], top_k: int) -> tuple[Float[Array, "... k"], Int[Array, "... k"]]:
    return jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32)), top_k)


@functools.partial(jax.jit, static_argnums=2)
def _read(model, residuals: Float[Array, "l p d"], top_k: int) -> tuple[Float[Array, "l p k"], Int[Array, "l p k"]]:
    """The likeliest tokens of every layer's residual stream; one layer's logits exist at a time."""

    def after(residual):
        return _likeliest(model(residual[None], start_at_layer=model.cfg.n_layers)[0], top_k)

    return jax.lax.map(after, residuals)


def token_log_probs(
    token_indices: Int[Any, " p"],
    log_probs: Float[Any, "p v"],
    to_string: Callable[[int], str],
    top_k: int = 10,
    *,
    title: str = "",
) -> ColoredTokens:
    """A text coloured by how likely the model held each token; pointed at, a token tells its rank and its rivals.

    `log_probs` [pos d_vocab] are the log-probabilities of what comes after each position; a batch of one may keep its
    axis. The first token is not predicted and has no colour.

    Raises:
        ValueError: the shapes do not fit each other, or the log-probabilities are something else, such as logits.

    Example:
        >>> import numpy as np
        >>> from jaxlens import plot
        >>> log_probs = np.log([[0.25, 0.75], [0.5, 0.5]])
        >>> plot.token_log_probs([0, 1], log_probs, to_string="ab".__getitem__).data["values"].tolist()
        [[nan, 0.75]]
    """
    ids = np.asarray(one_prompt(token_indices, None, "token_indices", 1))
    found = one_prompt(as_numbers(log_probs, "log_probs", "pos d_vocab", "batch pos d_vocab"), None, "log_probs", 2)
    if ids.shape != found.shape[:1]:
        raise ValueError(f"there are tokens of shape {list(ids.shape)} and log_probs for {len(found)} positions")
    sums = np.exp(found).sum(-1)
    if not np.allclose(sums, 1, atol=1e-2):
        raise ValueError(f"the probabilities of a position sum to {sums.min():.3g}; give jax.nn.log_softmax(logits)")
    before, actual = found[:-1], ids[1:]
    own = np.take_along_axis(before, actual[:, None], -1)[:, 0]
    ranks = (before > own[:, None]).sum(-1)
    best = np.argsort(-before, axis=-1, kind="stable")[:, :top_k]
    notes: list = [[("not predicted", None)]]
    for row, rank, chosen in zip(before, ranks, best, strict=True):
        rivals = [(to_string(one), float(np.exp(row[one]))) for one in chosen.tolist()]
        notes.append([(f"rank {rank}", None), *rivals])
    strings, values = [to_string(one) for one in ids.tolist()], np.concatenate([[np.nan], np.exp(own)])
    title = title or "Probability of each token"
    return ColoredTokens(strings, values[None], [""], 1.0, title, "probability", notes)
