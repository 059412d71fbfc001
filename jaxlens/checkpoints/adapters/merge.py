"""A base model whose tensors include the changes of an adapter, which are computed when a tensor is read."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlens.checkpoints.adapters.weights import LABEL_HEADS, Adapter, Change, LowRank, Names
from jaxlens.checkpoints.arrays import Rows, in_parts, norms, product, whole
from jaxlens.checkpoints.heads import CLASSIFIERS, PREFIXES, kind_of
from jaxlens.checkpoints.rules.rule import Family, Tensors, by_rows, opened, stored_dtype
from jaxlens.checkpoints.validate import shortened
from jaxlens.config import Config
from jaxlens.errors import CheckpointError

ROWS = 64
"""The number of rows of a tensor that are updated at a time."""

TASKS = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
"""The `task_type` of an adapter: the end of the name of its class."""


class MergedTensors:
    """The tensors of a base model with an adapter. At most one changed tensor is in memory.

    Changed tensors are computed, and returned, in float32 or wider. `dtype` is that of the base model. `copied` tensors
    have the values of another one, and `hidden` ones are left out.
    """

    def __init__(
        self, base: Tensors, adapter: Adapter, changes: Mapping[str, Change], copied: Mapping[str, str],
        hidden: set[str],
    ):  # fmt: skip
        self._base, self._adapter, self._changes = base, adapter, changes
        self._copied, self._hidden, self._names = copied, hidden, set(base.names())
        for name, change in changes.items():
            self.check(name, change)

    def names(self) -> list[str]:
        kept = [name for name in self._base.names() if name not in self._hidden]
        return list(dict.fromkeys((*kept, *self._copied, *self._changes)))

    def shape(self, name: str) -> tuple[int, ...]:
        change = self._changes.get(name)
        if change and change.whole:
            return self._adapter.file.shape(change.whole)
        return self._base.shape(self._copied.get(name, name))

    def dtype(self, name: str) -> str:
        source = self._copied.get(name, name)
        if source in self._names:
            return stored_dtype(self._base, source)
        return self._adapter.file.dtype(self._changes[name].whole)

    def read(self, name: str) -> np.ndarray:
        return whole(self.open(name))

    def open(self, name: str) -> np.ndarray | Rows:
        """A tensor, perhaps to be computed in parts."""
        change, source = self._changes.get(name), self._copied.get(name, name)
        if change is None:
            return opened(self._base, source)
        value = self._adapter.file.read(change.whole) if change.whole else by_rows(self._base, source)
        updated = self._updated(value, change.low_rank) if change.low_rank else value
        if not (change.bias or change.rows):
            return updated
        updated = whole(updated)
        value = np.array(updated, np.float64 if updated.dtype == np.float64 else np.float32)
        if change.bias:
            value += self._adapter.read(change.bias[0]) * np.float32(change.bias[1])
        if change.rows:
            value[list(change.rows[1])] = self._adapter.read(change.rows[0])
        return value

    def _updated(self, value: np.ndarray | Rows, update: LowRank) -> np.ndarray | Rows:
        """A tensor with a low-rank update, whose outputs are rescaled to the magnitudes of a DoRA."""
        magnitude = update.magnitude and self._adapter.read(update.magnitude).reshape(-1)
        swapped = isinstance(value, Rows) and value.transposed
        by_columns = magnitude is not None and update.transposed != swapped  # the magnitudes belong to columns
        if by_columns and isinstance(value, Rows):
            value, swapped, by_columns = value.array(), False, update.transposed
        B, A = update.factors()
        transposed = update.transposed != swapped
        left, right = (A.swapaxes(-1, -2), B.swapaxes(-1, -2)) if transposed else (B, A)
        left = left * np.float32(update.scale)

        def add(index: tuple[int, ...], rows: slice, out: np.ndarray) -> None:
            if isinstance(value, Rows):
                value.fill(rows, out)
            for start in range(rows.start, rows.stop, ROWS):
                few = slice(start, min(start + ROWS, rows.stop))
                part = out[start - rows.start : few.stop - rows.start]
                before = part if isinstance(value, Rows) else value[(*index, few)]
                np.add(before, product(left[(*index, few)], right[index]), out=part, casting="unsafe")
                if magnitude is not None and not by_columns:
                    part *= (magnitude[few] / norms(part))[:, None]

        if isinstance(value, Rows):
            return dataclasses.replace(value, fill=functools.partial(add, ()))
        is_double = value.dtype == np.float64
        if not (is_double or update.stack or by_columns):
            return Rows(value.shape, functools.partial(add, ()))
        result = np.empty(value.shape, np.float64 if is_double else np.float32)
        for index in np.ndindex(update.stack):
            in_parts(lambda rows, index=index: add(index, rows, result[(*index, rows)]), value.shape[-2], ROWS)
        if by_columns:
            result *= magnitude / np.sqrt(np.einsum("xy,xy->y", result, result))
        return result

    def check(self, name: str, change: Change) -> None:
        """Raises a CheckpointError unless a change has the shape of the tensor that it changes."""
        shape = self.shape(name)
        if update := change.low_rank:
            n_out, n_in = update.shape
            expected = (*update.stack, *((n_in, n_out) if update.transposed else (n_out, n_in)))
            if shape != expected:
                problem = f"{name} of the base model is {shape}, but the adapter's update is {expected}"
                raise CheckpointError(f"{self._adapter.folder}: {problem}; pass the base model of the adapter")
            if update.magnitude and (size := math.prod(self._adapter.file.shape(update.magnitude))) != n_out:
                raise self._refused(update.magnitude, f"{size} values; expected {n_out}, one for each output of {name}")
        if change.bias and (found := self._adapter.file.shape(change.bias[0])) != shape:
            raise self._refused(change.bias[0], f"shape {found}; expected {shape}, that of {name}")
        if change.rows:
            delta, rows = change.rows
            found, expected = self._adapter.file.shape(delta), (len(rows), *shape[1:])
            if found != expected or max(rows, default=0) >= shape[0]:
                tokens = f"the tokens in trainable_token_indices, which are below {shape[0]}"
                raise self._refused(delta, f"shape {found}; expected {expected}, a row of {name} for each of {tokens}")

    def _refused(self, part: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._adapter.folder}: {part} has {problem}; save the adapter again")


def merged(
    adapter: Adapter, family: Family, cfg: Config, fields: Mapping[str, Any], base: Tensors, merge: bool = True
) -> tuple[dict[str, Any], MergedTensors, dict[str, LowRank]]:
    """config.json and the tensors of a base model with an adapter. `cfg` is the Config of a language model.

    If the adapter changes only one of two tied tensors, they are not tied any more. Without `merge`, low-rank updates
    are returned by the tensors that they change, and not part of the tensors.
    """
    heads, stored = adapter.heads(), set(base.names())
    copies = [tuple(map(family.spelling(family.rules(cfg), stored), pair)) for pair in family.copies]
    has_labels = bool(heads) or any(f"{head}.weight" in stored for head in LABEL_HEADS)
    tied = copies[0] if cfg.tie_word_embeddings and copies and not has_labels else None
    added = [f"{head}.{leaf}" for head in heads for leaf in adapter.modules[head]] + ([tied[0]] if tied else [])
    layouts = (before + (prefix or "") for before, prefix in family.layouts)
    prefixes = (*family.prefixes, *PREFIXES, *layouts, *(before for before, _ in family.layouts))
    names = Names([*stored, *added], prefixes, family.renamed, adapter.folder, base.shape, cfg.num_experts)
    changes, updates = adapter.changes(str(fields.get("model_type")), names), {}
    if not merge:
        changes, updates = _without_updates(adapter, changes)
    fields = dict(fields) | ({"architectures": [_kind(adapter, fields)], **_labels(heads)} if heads else {})
    copied, hidden = {}, set()
    if tied and (change := _untied(adapter, changes, *tied)):
        copied, changes[tied[0]], fields["tie_word_embeddings"] = dict([tied]), change, False
    elif tied:
        hidden = {name for name, _ in copies}
        changes.pop(tied[0], None)
    elif heads:
        hidden = {name for name, _ in copies} | {f"{name.removesuffix('weight')}bias" for name, _ in copies}
    tensors = MergedTensors(base, adapter, changes, copied, hidden)
    for name in updates.keys() & stored:
        tensors.check(name, Change(low_rank=updates[name]))
    if copies and (rows := tensors.shape(copies[0][1])[0]) != cfg.d_vocab:
        fields["vocab_size"] = rows
    return fields, tensors, updates


def _without_updates(adapter: Adapter, changes: Mapping[str, Change]) -> tuple[dict[str, Change], dict[str, LowRank]]:
    """The changes that are no low-rank updates, and those that are. The former do not depend on the adapter's scale."""
    updates = {name: change.low_rank for name, change in changes.items() if change.low_rank}
    others = {name: dataclasses.replace(change, low_rank=None) for name, change in changes.items()}
    if biases := [name for name, change in changes.items() if change.bias]:
        problem = f"merge=False keeps low-rank updates apart, but this adapter also adds to {shortened(biases, 3)}"
        raise CheckpointError(f"{adapter.folder}: {problem}; load it with merge=True")
    if not updates:
        problem = "has no low-rank updates, which merge=False keeps apart"
        raise CheckpointError(f"{adapter.folder} {problem}; load it with merge=True")
    return {name: change for name, change in others.items() if change != Change()}, updates


def _untied(adapter: Adapter, changes: Mapping[str, Change], head: str, embedding: str) -> Change | None:
    """The change of the unembedding if the adapter changes only one of two tied tensors. None if they stay tied."""
    of_head, of_both = changes.get(head, Change()), changes.get(embedding, Change())
    low_rank = [change.low_rank for change in (of_both, of_head) if change.low_rank]
    if adapter.config.fields.get("ensure_weight_tying"):
        if any(update.magnitude for update in low_rank):
            problem = "has ensure_weight_tying, but DoRA gives each of the tied tensors magnitudes of its own"
            raise CheckpointError(f"{adapter.folder} {problem}; train it without ensure_weight_tying, or without DoRA")
        return None
    has_rows = of_head.rows and (not of_both.rows or list(of_head.rows[1]) != list(of_both.rows[1]))
    if not (low_rank or has_rows or of_both.of_its_own or of_head.of_its_own):
        return None
    whole = of_head.whole or (None if of_both.of_its_own else of_both.whole)
    return dataclasses.replace(of_head, whole=whole, rows=of_head.rows or of_both.rows)


def _kind(adapter: Adapter, fields: Mapping[str, Any]) -> str:
    """The end of the name of the class with the head that the adapter contains."""
    (head, *_), task = adapter.heads(), adapter.config.fields.get("task_type")
    if head != "score":
        return "ForQuestionAnswering" if head == "qa_outputs" else "ForTokenClassification"
    of_base = kind_of(fields) if kind_of(fields) in CLASSIFIERS else None
    by_bias = "ForTokenClassification" if "bias" in adapter.modules[head] else "ForSequenceClassification"
    return TASKS.get(task) or of_base or by_bias


def _labels(heads: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    number = next(iter(heads.values()))[0]
    return {"id2label": {str(label): f"LABEL_{label}" for label in range(number)}}
