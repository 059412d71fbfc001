"""The training checkpoints of published models: Pythia, Stanford CRFM's GPT-2, and TransformerLens's toy models.

A training checkpoint has an index and a value, which is the step or the number of tokens after which it was saved. The
steps of Pythia (Biderman et al. 2023, arXiv 2304.01373) and of GPT-2 (github.com/stanford-crfm/mistral) are those in
TransformerLens, and each is a revision of the repository. The values of toy models are in the names of files.
"""

import bisect
import dataclasses
import numbers
import re
from collections.abc import Callable, Iterable

from jaxlens.errors import CheckpointError

EVERY_THOUSAND = range(1000, 143_001, 1000)
STEPS = {
    re.compile(r"EleutherAI/pythia.*v0.*"): [*EVERY_THOUSAND],
    re.compile(r"EleutherAI/pythia.*"): [0, *(2**i for i in range(10)), *EVERY_THOUSAND],
    re.compile(r"stanford-crfm/.*"): [
        *range(0, 100, 10), *range(100, 2000, 50), *range(2000, 20_000, 100), *range(20_000, 400_001, 1000),
    ],
}  # fmt: skip
"""The steps of the training checkpoints of each repository. The first pattern that matches its name applies."""

REVISIONS = {"EleutherAI/": "step{}", "stanford-crfm/": "checkpoint-{}"}
"""The revision of a step, by the owner of the repository."""

FILE = re.compile(r"checkpoints/.*_(\d+)\.(?:pth|safetensors)")
"""The file of a training checkpoint of a toy model. The number is its value."""

MOST_STEPS = 10**9
"""A larger value is a number of tokens, as in TransformerLens."""

Labels = tuple[list[int], str]
"""The values of all training checkpoints of a model, and their kind: "step" or "token"."""


@dataclasses.dataclass(frozen=True)
class TrainingCheckpoint:
    """One of the training checkpoints of a model. `revision` is None if it is a file of the main revision."""

    index: int
    value: int
    label_type: str
    revision: str | None


def labels_of(name: str, files: Callable[[], Iterable[str]]) -> Labels:
    """The values of the training checkpoints of a repository or folder, in ascending order, and their kind.

    `files` returns the names of its files. It is called if the name does not determine the values.

    Raises:
        CheckpointError: The model has no training checkpoints.
    """
    for pattern, steps in STEPS.items():
        if pattern.fullmatch(name):
            return steps, "step"
    values = sorted(int(match[1]) for match in map(FILE.fullmatch, files()) if match)
    if not values:
        remedy = "leave out checkpoint_index and checkpoint_value; revision= selects a revision of a repository"
        raise CheckpointError(f"{name} has no training checkpoints; {remedy}")
    return values, "token" if values[-1] > MOST_STEPS else "step"


def find_training_checkpoint(name: str, labels: Labels, index: int | None, value: int | None) -> TrainingCheckpoint:
    """The training checkpoint with an index, which may be negative, or with a value.

    Example:
        >>> labels = labels_of("EleutherAI/pythia-70m", list)
        >>> find_training_checkpoint("EleutherAI/pythia-70m", labels, index=-1, value=None)
        TrainingCheckpoint(index=153, value=143000, label_type='step', revision='step143000')

    Raises:
        ValueError: Both an index and a value are given, or the model has no such training checkpoint.
    """
    values, label_type = labels
    if wrong := [given for given in (index, value) if not isinstance(given, numbers.Integral | None)]:
        raise ValueError(f"checkpoint_index or checkpoint_value is {wrong[0]!r}; expected an integer")
    if index is not None and value is not None:
        raise ValueError(f"checkpoint_index is {index} and checkpoint_value is {value}; pass only one of them")
    if index is not None and not -len(values) <= index < len(values):
        expected = f"expected 0 to {len(values) - 1}, or a negative index from the end"
        raise ValueError(f"checkpoint_index is {index}; {expected}, because {name} has {len(values)} checkpoints")
    if index is None and value not in values:
        near = _nearest(values, value)
        raise ValueError(f"{name} has no checkpoint of {label_type} {value}; the nearest is checkpoint_value={near}")
    value = int(value) if index is None else values[index]
    revision = next((text for owner, text in REVISIONS.items() if name.startswith(owner)), None)
    return TrainingCheckpoint(values.index(value), value, label_type, revision and revision.format(value))


def _nearest(values: list[int], value: int) -> int:
    at = bisect.bisect(values, value)
    return min(values[max(at - 1, 0) : at + 1], key=lambda known: abs(known - value))


def file_patterns(value: int) -> list[str]:
    """Patterns of the name of the file with this value, whose number may begin with zeros."""
    return [f"checkpoints/*_{value:0{digits}}.*" for digits in range(len(str(value)), 20)]
