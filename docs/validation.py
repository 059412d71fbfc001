"""Measures validation.md: `PYTHONPATH=tests python docs/validation.py` takes some minutes and needs torch."""

import importlib.metadata
import tempfile
from collections.abc import Iterable
from pathlib import Path

HEADER = """# Validation

Measured by `PYTHONPATH=tests python docs/validation.py` with {versions}; do not edit.

For each architecture, transformers writes tiny random checkpoints, which together use every option of its config. The
reference is the float32 logits of transformers, mostly with eager attention, on {batch} × {length} random tokens. The
last column is the largest difference of any logit in any checkpoint, divided by the largest logit of that checkpoint.
`tests/test_families.py` repeats the comparison with other checkpoints. It fails above {tolerance:.0e}. It also writes
each checkpoint again, and the result has the same tensors bit for bit.

Weights are random and large, so attention is far from uniform, and a mistake anywhere changes the logits. Comparisons
of published checkpoints: [conversion/RESULTS.md](../conversion/RESULTS.md).

| `model_type` | checkpoints | reference | largest difference |
|---|---|---|---|
"""
TOLERANCE = 1e-5
LENGTH, BATCH, SEED = 40, 2, 7
PACKAGES = ("jax", "torch", "transformers")


def difference(folder: Path, model_type: str, fields: dict) -> float:
    """The largest difference of logits between jaxlens and transformers, divided by the largest logit."""
    import numpy as np
    from support.tiny import hf_logits, random_tokens, write_checkpoint

    from jaxlens import HookedTransformer
    from jaxlens.checkpoints import load

    write_checkpoint(folder, model_type, SEED, **fields)
    tokens = random_tokens(SEED, LENGTH, BATCH)
    theirs = hf_logits(folder, tokens)
    loaded = load(folder, n_ctx=64 if fields.get("max_position_embeddings", 64) < LENGTH else None)
    ours = np.asarray(HookedTransformer(loaded.cfg, params=loaded.params, source=loaded.source)(tokens))
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def measured() -> Iterable[tuple[str, int, str, float]]:
    """For each architecture: its name, the number of checkpoints, the reference, and the largest difference."""
    import jax
    from families import CASES

    from jaxlens.checkpoints.families import family_of

    for model_type, cases in sorted(CASES.items()):
        with tempfile.TemporaryDirectory() as folder:
            differences = [difference(Path(folder, str(i)), model_type, fields) for i, fields in enumerate(cases)]
        jax.clear_caches()
        yield model_type, len(cases), family_of(model_type).reference, max(differences)


def page() -> str:
    """The page as Markdown."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    text = HEADER.format(versions=versions, batch=BATCH, length=LENGTH, tolerance=TOLERANCE)
    for model_type, checkpoints, reference, largest in measured():
        row = f"| `{model_type}` | {checkpoints} | {reference} | {largest:.1e} |\n"
        print(row, end="", flush=True)
        text += row
    return text


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), "utf-8")
