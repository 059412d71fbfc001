"""One generation from its arguments to its results: `model.generate` and `model.generate_stream` run it.

Axes: b batch, n new token, p position, v vocabulary.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens._jax import on_host
from jaxlens.hooks.names import split_name
from jaxlens.hooks.table import LENGTH_AXES, POSITION_AXES
from jaxlens.model.automatic_axes import explicit
from jaxlens.model.cache.activation_cache import ActivationCache
from jaxlens.model.engine import Captured
from jaxlens.model.generation.loop import Loop
from jaxlens.model.generation.prompt import Prompt, embedded
from jaxlens.model.generation.stream import text_of
from jaxlens.model.lengths import program_length
from jaxlens.nn.kv_cache import KVCache

SEGMENT = 8
"""After so many tokens the host looks at them, for the progress bar and for stop strings."""


BEFORE = -1
"""The step of tokens that were in a cache before the prompt."""


@dataclasses.dataclass(frozen=True)
class Generated:
    """What `generate` returns with `output_logits`: the sequences, and the logits that each new token was chosen from.

    `logits` are [n b v], so `logits[i]` are those of the i-th new token.
    """

    sequences: Any
    logits: Float[Array, "n b v"]


class Generation:
    """A generation that runs. `tokens` are the new ones at the end of its last segment."""

    def __init__(
        self, loop: Loop, model: Any, prompt: Prompt, max_new_tokens: int, stop_strings: tuple[str, ...] = (),
        past: KVCache | None = None, chunk: int | None = None,
    ):  # fmt: skip
        self.loop, self.model, self.prompt = loop, model, prompt
        self.max_new_tokens, self.stop_strings, self.chunk = max_new_tokens, stop_strings, chunk
        self.start = 0 if past is None else past.length
        self._past, self.state = past, None
        self.tokens = np.zeros((len(prompt.model_input.mask), 0), np.int32)

    def segments(self, size: int) -> Iterator[Int[np.ndarray, "b n"]]:
        """Runs the generation, and yields the new tokens after every `size` of them."""
        while (done := self.tokens.shape[1]) < self.max_new_tokens:
            goal = min(done + size, self.max_new_tokens)
            with self.loop.axes():
                if self.state is None:
                    room = program_length(self.max_new_tokens, self.max_new_tokens + 8)
                    self.state = self.loop.begin(self._cache(), self.prompt.model_input, room, self.chunk)
                if goal > 1:
                    self.state = self.loop.until(self.state, goal)
            self.tokens = on_host(self.state.tokens)[:, : int(self.state.count)]
            finished = on_host(self.state.finished)
            if self.stop_strings:
                finished = self._stop_at_strings(finished)
            yield self.tokens[:, done:]
            if finished.all():
                return

    def _cache(self) -> KVCache:
        """An empty cache, or a copy of the given one, with room for the generation. Its steps are counted from 0."""
        cfg, (n_rows, n_columns) = self.model.cfg, self.prompt.model_input.mask.shape
        n_slots = self.start + program_length(n_columns, cfg.n_ctx) + self.max_new_tokens
        n_slots = min(program_length(n_slots, cfg.n_ctx), cfg.n_ctx)
        if self._past is None:
            return self.model.init_kv_cache(n_rows, n_slots)
        longer = self._past.with_room(n_slots)
        longer = longer.copy() if longer is self._past else longer
        before = dataclasses.replace(longer.slots, steps=jnp.full_like(longer.slots.steps, BEFORE))
        return dataclasses.replace(longer, slots=before.at_step(0))

    def _stop_at_strings(self, finished: np.ndarray) -> np.ndarray:
        """Finishes the rows whose new text contains a stop string, after the token that completes it."""
        rows = self.rows()
        finished = finished | np.array([self._has_stop_string(row) for row in rows])
        length = max(map(len, rows)) if finished.all() else self.tokens.shape[1]
        tokens = np.full((len(rows), length), self.loop.rules.filler, np.int32)
        for new, row in zip(tokens, rows, strict=True):
            new[: len(row)] = row
        self.tokens = tokens
        padded = on_host(self.state.tokens).copy()
        padded[:, : tokens.shape[1]] = tokens
        self.state = dataclasses.replace(self.state, tokens=jnp.asarray(padded), finished=jnp.asarray(finished))
        return finished

    def rows(self) -> list[Int[np.ndarray, "n"]]:
        """The new tokens of each row, without those that fill it after its end."""
        return [row[: self._end(row)] for row in self.tokens]

    def _has_stop_string(self, ids: np.ndarray) -> bool:
        text = text_of(self.model.tokenizer, ids) if self.stop_strings else ""
        return any(string in text for string in self.stop_strings)

    def _end(self, ids: np.ndarray) -> int:
        """The number of tokens up to EOS, or up to that which completes a stop string before, or all of them."""
        is_end = np.isin(ids, self.loop.rules.ends)
        ids = ids[: is_end.argmax() + 1] if is_end.any() else ids
        if not self._has_stop_string(ids):
            return len(ids)
        return next(n for n in range(1, len(ids) + 1) if self._has_stop_string(ids[:n]))

    # --- results

    def output(self, return_type: str) -> Any:
        """The sequences as "str", "tokens" or "embeds", or with "input" as the prompt was given."""
        kind = self.prompt.kind if return_type == "input" else return_type
        is_text, rows, ends = self.prompt.kind in ("str", "list"), self.tokens, list(map(len, self.rows()))
        if kind == "embeds":
            embed = functools.partial(embedded, self.model)
            given = self.prompt.given if self.prompt.kind == "embeds" else embed(self.prompt.given)
            return jnp.concatenate([given, embed(rows)], axis=1)
        if self.prompt.kind != "embeds":
            given = np.asarray(self.prompt.model_input.tokens if is_text else self.prompt.given, np.int32)
            rows, ends = np.concatenate([given, rows], axis=1), [given.shape[1] + end for end in ends]
        if kind == "tokens":
            return jax.device_put(rows)  # jnp.asarray would compile a program per shape
        rows = [row[:end] for row, end in zip(rows, ends, strict=True)]
        texts = [text_of(self.model.tokenizer, row, skip_special_tokens=True) for row in rows]
        return texts[0] if self.returns_one else texts

    @property
    def returns_one(self) -> bool:
        """Whether text is returned as one string, not as a list: for a string, and for one row of tokens."""
        return self.prompt.kind != "list" and len(self.tokens) == 1

    def logits(self) -> Float[Array, "n b v"]:
        """The logits that each token was chosen from."""
        with self.loop.axes():
            logits = jnp.moveaxis(self.state.logits, 1, 0)[: self.tokens.shape[1]]
        return logits if self.loop.layout is None else self.loop.layout.to_explicit(logits)

    def cache(self) -> ActivationCache:
        """The activations of the prompt and of the new tokens."""
        n_columns = self.prompt.model_input.mask.shape[1] + self.tokens.shape[1]
        with self.loop.axes():
            if self.state.cache.length - self.start < n_columns:
                self.state = self.loop.last_run(self.state)
            captured = [_cut(entry, self.start, n_columns) for entry in self.state.captured]
        if self.loop.layout is not None:
            captured = [explicit(entry, self.loop.layout) for entry in captured]
        new = ((0, 0), (0, self.tokens.shape[1]))
        mask = np.pad(np.asarray(self.prompt.model_input.mask), new, constant_values=True)
        return ActivationCache.of(captured, self.model, mask=mask)


def _cut(entry: Captured, start: int, n: int) -> Captured:
    """An activation at n columns from `start` on. The sources in patterns are all slots before the last of them."""
    site, value = split_name(entry.name)[0], entry.value
    for axis in LENGTH_AXES[site]:
        first = start if axis == POSITION_AXES[site] else 0
        value = jax.lax.slice_in_dim(value, first, start + n, axis=axis + (entry.layers is not None))
    return dataclasses.replace(entry, value=value)
