"""Compares a checkpoint in jaxlens with transformers: the logits, and the residual stream before every layer."""

import contextlib
import dataclasses
import importlib.metadata
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.checkpoints import load, native
from jaxlens.checkpoints.converter import convert_back
from jaxlens.checkpoints.families import family_of
from jaxlens.checkpoints.heads import BASE, kind_of
from jaxlens.checkpoints.open import Checkpoint, open_checkpoint
from jaxlens.checkpoints.validate import expected_shapes
from jaxlens.errors import CheckpointError, require
from jaxlens.model.transformer import HookedTransformer

TOLERANCE = 1e-5
"""The largest difference of float32 logits, relative to the largest logit, for every family."""

CORRECT_SINCE = {"deepseek_v2": (5, 15), "olmo3": (5, 13)}
"""The first version of transformers that computes the rotary scaling of a model_type correctly: pull request 47435 of
huggingface/transformers (the factor on attention scores of YaRN), and issue 46911 (scaling in global layers only)."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest absolute difference of an activation, and its largest absolute value in transformers."""

    name: str
    largest: float
    magnitude: float

    @property
    def relative(self) -> float:
        """`largest` divided by `magnitude`."""
        return self.largest / self.magnitude


@dataclasses.dataclass(frozen=True, eq=False)
class Verification:
    """The result of a comparison. `residuals` are the residual stream before each layer and at the unembedding."""

    name: str
    model_type: str
    parameters: int
    tokens: np.ndarray
    residuals: list[Difference]
    logits: Difference

    @property
    def passed(self) -> bool:
        """Whether the logits agree within `TOLERANCE`."""
        return self.logits.relative <= TOLERANCE  # False for NaN


def verify(
    name_or_path: str | os.PathLike[str], text: str | None = None, *, batch: int = 2, length: int = 64, seed: int = 0,
    revision: str | None = None, adapter: str | os.PathLike[str] | None = None,
) -> Verification:  # fmt: skip
    """Runs a checkpoint in jaxlens and in transformers, in float32, on a text or on random tokens.

    Random tokens have shape (batch, length). `length` is at most the context length.

    Raises:
        CheckpointError: jaxlens or transformers cannot load the checkpoint.
        ImportError: torch is not installed, or the installed transformers computes this model incorrectly.
    """
    torch = require("torch", "comparing with transformers")
    checkpoint = open_checkpoint(name_or_path, revision, adapter=adapter)
    check_version(checkpoint)
    loaded = load(name_or_path, revision=revision, adapter=adapter)
    cfg = loaded.cfg
    model = HookedTransformer(cfg, loaded.tokenizer, params=loaded.params, name=loaded.name, source=loaded.source)
    if text is None:
        tokens = np.random.default_rng(seed).integers(0, cfg.d_vocab, (batch, min(length, cfg.n_ctx)))
    else:
        tokens = np.asarray(model.to_tokens(text))
    if cfg.output_head == "sequence_labels":
        tokens = tokens[:1]  # transformers needs a padding token for several rows
    names = [*(f"blocks.{layer}.hook_resid_pre" for layer in range(cfg.n_layers)), "unembed.hook_in"]
    _, cache = model.run_with_cache(tokens, names_filter=names, return_type=None)
    with reference(checkpoint, adapter) as theirs, torch.inference_mode():
        try:
            out = theirs(input_ids=torch.tensor(tokens), use_cache=False, output_hidden_states=True)
        except TypeError as error:  # arguments for images are missing
            raise CheckpointError(f"transformers cannot run {checkpoint.name} on text alone: {error}") from error
    residuals = [difference(name, cache[name], states) for name, states in zip(names, out.hidden_states, strict=True)]
    parameters = sum(int(np.prod(shape)) for shape in expected_shapes(cfg).values())
    of_logits = difference(*outputs(model, tokens, cache, out))
    return Verification(loaded.name, checkpoint.model_type, parameters, tokens, residuals, of_logits)


def outputs(model: HookedTransformer, tokens: np.ndarray, cache: Any, out: Any) -> tuple[str, Any, Any]:
    """What is compared besides the residual stream: its name, and the values in jaxlens and in transformers."""
    if model.cfg.output_head is None:
        return "last hidden state", cache["unembed.hook_in"], out.last_hidden_state
    if model.cfg.output_head == "sequence_labels":
        return "logits", model.label_scores(tokens), out.logits
    if "end_logits" in out:
        return "logits", model(tokens), require("torch", "stacking").stack((out.start_logits, out.end_logits), -1)
    return "logits", model(tokens), out.logits


def difference(name: str, ours: Any, theirs: Any) -> Difference:
    """Compares two arrays. The difference is infinite if their shapes differ, as in OPT-350m's last hidden state."""
    ours, theirs = np.asarray(ours), theirs.numpy()
    largest = np.abs(ours - theirs).max() if ours.shape == theirs.shape else np.inf
    return Difference(name, float(largest), float(np.abs(theirs).max()))


def check_version(checkpoint: Checkpoint) -> None:
    """Raises an ImportError if the installed transformers computes the rotary scaling of a checkpoint incorrectly."""
    version, kind = importlib.metadata.version("transformers"), checkpoint.model_type
    scaled = any(rotary is not None and rotary.scaling for rotary in checkpoint.cfg.rotary or ())
    if scaled and tuple(map(int, re.findall(r"\d+", version)[:2])) < (first := CORRECT_SINCE.get(kind, (0, 0))):
        needed = ".".join(map(str, first))
        problem = f"transformers {version} computes the rotary scaling of {kind} incorrectly"
        raise ImportError(f"{problem}; expected at least {needed}; run `pip install 'transformers>={needed}'`")


@contextlib.contextmanager
def reference(checkpoint: Checkpoint, adapter: str | os.PathLike[str] | None = None) -> Iterator[Any]:
    """transformers' model of a checkpoint. One in the native format, or with an adapter, is exported first.

    So is a quantized one: transformers reads most of them on a GPU only, with the library that wrote them.
    """
    import transformers
    from transformers.utils import logging

    kind = "" if checkpoint.cfg.output_head is None else kind_of({**(checkpoint.source or {})})
    auto = getattr(transformers, f"AutoModel{'ForCausalLM' if kind == BASE else kind}")
    torch = require("torch", "transformers' models")
    path, options, family = checkpoint.path, {}, family_of(checkpoint.model_type)
    with tempfile.TemporaryDirectory() as exported:
        if checkpoint.family is native.FAMILY or checkpoint.adapter is not None or checkpoint.quantization:
            dtype = "float32" if checkpoint.quantization else None
            path = convert_back(checkpoint.name, Path(exported) / "model", dtype=dtype, adapter=adapter)
        elif path.is_file():
            path, options = path.parent, {"gguf_file": path.name}
        logging.disable_progress_bar()
        try:
            if checkpoint.part_of is not None and path == checkpoint.path and kind:
                auto = transformers.AutoModelForMultimodalLM
            yield auto.from_pretrained(
                path, dtype=torch.float32, attn_implementation=family.reference, local_files_only=True, **options
            ).eval()
        except (OSError, LookupError, ValueError) as error:
            raise CheckpointError(f"transformers cannot open {checkpoint.name}: {error}") from error
