"""A checkpoint against transformers, which has the last word: logits, and the residual stream before every layer."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.checkpoint import convert_back
from jaxlens.convert import load
from jaxlens.convert.checking import shapes
from jaxlens.convert.families import family_of, own
from jaxlens.convert.opening import Checkpoint, open_checkpoint
from jaxlens.errors import CheckpointError
from jaxlens.optional import needed
from jaxlens.transformer import HookedTransformer

TOLERANCE = 1e-5
"""Of the largest logit, in float32, for every family."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """By how much the two differ at most in one place, and the largest value that transformers has there."""

    place: str
    largest: float
    of: float

    @property
    def share(self) -> float:
        """Of the largest value."""
        return self.largest / self.of


@dataclasses.dataclass(frozen=True)
class Verification:
    """What a comparison found. `places` are the residual stream before each layer, and what the unembedding reads."""

    name: str
    model_type: str
    parameters: int
    tokens: np.ndarray
    places: list[Difference]
    logits: Difference

    @property
    def passed(self) -> bool:
        """Whether logits are transformers' to one part in 100,000 of the largest."""
        return self.logits.share <= TOLERANCE  # False for NaN


def verify(
    name_or_path: str | os.PathLike[str], text: str | None = None, *, batch: int = 2, length: int = 64, seed: int = 0,
    revision: str | None = None,
) -> Verification:  # fmt: skip
    """Runs a checkpoint here and in transformers, both in float32, on a text or random tokens.

    Random tokens are `batch` rows of `length`, or of the context's length if that is shorter.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, here or there.
        ImportError: torch is not installed.
    """
    torch = needed("torch", "comparing with transformers")
    checkpoint = open_checkpoint(name_or_path, revision)
    loaded = load(name_or_path, revision=revision)
    cfg = loaded.cfg
    model = HookedTransformer(cfg, loaded.tokenizer, params=loaded.params, name=loaded.name, source=loaded.source)
    if text is None:
        tokens = np.random.default_rng(seed).integers(0, cfg.d_vocab, (batch, min(length, cfg.n_ctx)))
    else:
        tokens = np.asarray(model.to_tokens(text))
    names = [*(f"blocks.{layer}.hook_resid_pre" for layer in range(cfg.n_layers)), "unembed.hook_in"]
    logits, cache = model.run_with_cache(tokens, names_filter=names)
    with reference(checkpoint) as theirs, torch.inference_mode():
        out = theirs(input_ids=torch.tensor(tokens), use_cache=False, output_hidden_states=True)
    places = [difference(name, cache[name], states) for name, states in zip(names, out.hidden_states, strict=True)]
    parameters = sum(int(np.prod(shape)) for shape in shapes(cfg).values())
    found = difference("logits", logits, out.logits)
    return Verification(loaded.name, checkpoint.model_type, parameters, tokens, places, found)


def difference(place: str, ours: Any, theirs: Any) -> Difference:
    """Infinite where shapes differ: transformers' last hidden state may be narrower, as embeddings are in OPT-350m."""
    ours, theirs = np.asarray(ours), theirs.numpy()
    largest = np.abs(ours - theirs).max() if ours.shape == theirs.shape else np.inf
    return Difference(place, float(largest), float(np.abs(theirs).max()))


@contextlib.contextmanager
def reference(checkpoint: Checkpoint) -> Iterator[Any]:
    """transformers' model of a checkpoint; of a folder of jaxlens's own, by way of an export."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    torch = needed("torch", "transformers' models")
    path, options, family = checkpoint.path, {}, family_of(checkpoint.model_type)
    with tempfile.TemporaryDirectory() as exported:
        if checkpoint.family is own.FAMILY:
            path = convert_back(path, Path(exported) / "model")
        elif path.is_file():
            path, options = path.parent, {"gguf_file": path.name}
        logging.disable_progress_bar()
        try:
            yield AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, attn_implementation=family.reference, local_files_only=True, **options
            ).eval()
        except (OSError, LookupError) as error:
            raise CheckpointError(f"{checkpoint.name} cannot be opened by transformers: {error}") from error
