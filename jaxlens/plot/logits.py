"""Next-token predictions: after each layer at each position (the logit lens), and for each token of a text.

Axes: b batch, l layer, p position, d d_model, v vocabulary, k rank among the likeliest tokens.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens.model.cache.activation_cache import ActivationCache
from jaxlens.plot.colours import is_dark
from jaxlens.plot.heatmaps import axis_data, draw_cells, draw_scale
from jaxlens.plot.labels import as_labels, as_numbers, as_strings, check_size, label, printable, rounded, select_prompt
from jaxlens.plot.picture import Drawing
from jaxlens.plot.terminal import Axis, words
from jaxlens.plot.tokens import ColoredTokens


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class LogitLens(Drawing):
    """The likeliest next tokens after each layer at each position, in descending order of probability."""

    probabilities: Float[np.ndarray, "l p k"]
    ids: Int[np.ndarray, "l p k"]
    strings: dict[int, str]
    rows: Axis
    columns: Axis
    title: str
    kind = "lens"

    @property
    def data(self) -> dict[str, Any]:
        strings = [[[self.strings[token] for token in tokens] for tokens in row] for row in self.ids.tolist()]
        labels = {"layers": self.rows.labels, "tokens": self.columns.labels}
        return {"probabilities": self.probabilities, "ids": self.ids, "strings": strings, **labels}

    def _page_data(self) -> dict[str, Any]:
        """Contains every string once. The entries of "ids" are indices into "strings"."""
        index = {token: position for position, token in enumerate(self.strings)}
        ids = [[[index[token] for token in tokens] for tokens in row] for row in self.ids.tolist()]
        axes = {"rows": axis_data(self.rows), "columns": axis_data(self.columns)}
        strings = [printable(text) for text in self.strings.values()]
        return {**axes, "strings": strings, "ids": ids, "probabilities": rounded(self.probabilities, 3)}

    def _best_labels(self) -> list[list[str]]:
        return [[label(self.strings[token]) for token in row] for row in self.ids[..., 0].tolist()]

    def _text_lines(self, width: int, ansi: bool) -> list[str]:
        best = self.probabilities[..., 0]
        cells = [
            [f"{text[:8]} {value:.0%}" for text, value in zip(*row, strict=True)]
            for row in zip(self._best_labels(), best, strict=True)
        ]
        return words(self.rows, self.columns, cells, best, width, ansi)

    def _image_size(self) -> tuple[float, float]:
        return 1.5 + 0.72 * len(self.columns.labels), 1.3 + 0.22 * len(self.rows.labels)

    def _page_height(self) -> int:
        return 22 * len(self.rows.labels) + 130

    def _draw(self, figure: Any) -> None:
        panel, best, labels = figure.subplots(), self.probabilities[..., 0], self._best_labels()
        image = draw_cells(panel, best, self.rows, self.columns, 1.0, False)
        for (row, column), value in np.ndenumerate(best):
            text, colour = labels[row][column], "white" if is_dark(value) else "black"
            text = text if len(text) < 11 else text[:9] + "…"
            panel.text(column, row, text, ha="center", va="center", fontsize=6, color=colour, parse_math=False)
        draw_scale(image, panel, "probability", self._image_size()[1])


def logit_lens(
    logits: Float[Any, "l p v"] | ActivationCache, tokens: Any = None, *, top_k: int = 5,
    to_string: Callable[[int], str] | None = None, ylabels: Sequence[Any] | None = None, batch_idx: int | None = None,
    title: str = "",
) -> LogitLens:  # fmt: skip
    """The likeliest next tokens after each layer: the logit lens (nostalgebraist, 2020).

    `logits` is an array [layer pos d_vocab] or a cache. For a cache, the final norm and the unembedding of the model
    are applied to `resid_post` of every layer. A cell shows the likeliest token, and its tooltip the `top_k` likeliest
    tokens. `tokens` are the tokens of the prompt, as in `attention_patterns`. `to_string` converts a token id to text.
    For a cache, the default is the tokenizer of the model.

    Raises:
        ValueError: The shapes and tokens do not match, or `batch_idx` is missing for several prompts.
        ActivationNotFound: The cache does not contain `resid_post` of every layer.

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
            raise ValueError("the cache lost its model in a JAX transformation; pass logits [layer pos d_vocab]")
        residuals = logits.stack_activation("resid_post")
        residuals = jnp.moveaxis(residuals, 1, 0) if residuals.ndim == 4 else residuals
        residuals = select_prompt(residuals, batch_idx, "the cache", 3)
        likeliest = _lens(model, residuals, min(top_k, model.cfg.d_vocab_out))
        if to_string is None and model.tokenizer is not None:
            to_string = functools.partial(_token_string, model)
    else:
        array = select_prompt(logits, batch_idx, "logits", 3)
        if np.ndim(array) != 3 or not np.size(array):
            raise ValueError(f"logits has shape {np.shape(array)}; expected [layer pos d_vocab], without empty axes")
        likeliest = _likeliest(jnp.asarray(array), min(top_k, array.shape[-1]))
    probabilities, ids = (np.asarray(array) for array in likeliest)
    check_size(probabilities, "the logit lens")
    strings = {token: (to_string or str)(token) for token in np.unique(ids).tolist()}
    columns = Axis("position", as_strings(tokens, ids.shape[1], model, batch_idx))
    rows = Axis("layer", as_labels(ylabels, len(ids), "ylabels"))
    return LogitLens(probabilities.astype(np.float64), ids, strings, rows, columns, title or "Logit lens")


def _token_string(model: Any, token: int) -> str:
    """A token as text. Ids that only a padded vocabulary has are shown as numbers in brackets."""
    return model.to_single_str_token(token) if token < len(model.tokenizer) else f"[{token}]"


@functools.partial(jax.jit, static_argnums=1)
def _likeliest(logits: Float[Array, "... v"], top_k: int) -> tuple[Float[Array, "... k"], Int[Array, "... k"]]:
    return jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32)), top_k)


@functools.partial(jax.jit, static_argnums=2)
def _lens(model, residuals: Float[Array, "l p d"], top_k: int) -> tuple[Float[Array, "l p k"], Int[Array, "l p k"]]:
    """The likeliest tokens after each layer. Only the logits of one layer are in memory at a time."""

    def after_layer(residual):
        return _likeliest(model(residual[None], start_at_layer=model.cfg.n_layers)[0], top_k)

    return jax.lax.map(after_layer, residuals)


def token_log_probs(
    token_indices: Int[Any, " p"], log_probs: Float[Any, "p v"], to_string: Callable[[int], str], top_k: int = 10, *,
    title: str = "",
) -> ColoredTokens:  # fmt: skip
    """A text colored by the probability of each token. Tooltips show the rank and the `top_k` likeliest tokens.

    `log_probs` [pos d_vocab] are the log-probabilities of the token after each position. A batch axis of length 1 is
    accepted. The first token has no prediction and no color.

    Raises:
        ValueError: The shapes do not match, or the probabilities do not sum to one, for example in the case of logits.

    Example:
        >>> import numpy as np
        >>> from jaxlens import plot
        >>> log_probs = np.log([[0.25, 0.75], [0.5, 0.5]])
        >>> plot.token_log_probs([0, 1], log_probs, to_string="ab".__getitem__).data["values"].tolist()
        [[nan, 0.75]]
    """
    ids = np.asarray(select_prompt(token_indices, None, "token_indices", 1))
    array = select_prompt(as_numbers(log_probs, "log_probs", "pos d_vocab", "batch pos d_vocab"), None, "log_probs", 2)
    if ids.shape != array.shape[:1]:
        raise ValueError(f"token_indices has shape {ids.shape}; expected {array.shape[:1]}, the positions of log_probs")
    sums = np.exp(array).sum(-1)
    if not np.allclose(sums, 1, atol=1e-2):
        raise ValueError(f"the probabilities sum to {sums.min():.3g}; expected 1; pass jax.nn.log_softmax(logits)")
    predictions, targets = array[:-1], ids[1:]
    target_log_probs = np.take_along_axis(predictions, targets[:, None], -1)[:, 0]
    ranks = (predictions > target_log_probs[:, None]).sum(-1)
    likeliest = np.argsort(-predictions, axis=-1, kind="stable")[:, :top_k]
    notes: list = [[("not predicted", None)]]
    for row, rank, best in zip(predictions, ranks, likeliest, strict=True):
        alternatives = [(to_string(token), float(np.exp(row[token]))) for token in best.tolist()]
        notes.append([(f"rank {rank}", None), *alternatives])
    strings, values = [to_string(token) for token in ids.tolist()], np.concatenate([[np.nan], np.exp(target_log_probs)])
    title = title or "Probability of each token"
    return ColoredTokens(strings, values[None], [""], 1.0, title, "probability", notes)
