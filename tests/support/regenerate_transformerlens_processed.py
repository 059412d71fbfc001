"""Writes transformerlens_processed.json, what TransformerLens makes of the weights of tests/test_weights.py.

Needs `pip install transformer-lens==3.5.1`; then `PYTHONPATH=tests python -m
support.regenerate_transformerlens_processed`."""

import ast
import json
from pathlib import Path

import numpy as np
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

HERE = Path(__file__).parents[1]
SHARED = ("REFERENCE_CONFIGS", "REFERENCE_SIZES", "reference_weights", "fingerprints")
BUFFERS = ("mask", "IGNORE", "rotary_sin", "rotary_cos")


def shared_with_the_test() -> dict:
    """The definitions that both need, taken from the test's text: where TransformerLens is, jaxlens need not be."""
    found = {"np": np}
    for node in ast.parse((HERE / "test_weights.py").read_text()).body:
        name = getattr(node, "name", None) or getattr(getattr(node, "targets", [None])[0], "id", None)
        if name in SHARED:
            exec(compile(ast.Module([node], []), "test_weights.py", "exec"), found)
    return found


def main() -> None:
    """Every weight's fingerprint after TransformerLens's default processing."""
    shared, written = shared_with_the_test(), {}
    for name, fields in shared["REFERENCE_CONFIGS"].items():
        rotary = {"rotary_dim": 6} if fields["positional_embedding_type"] == "rotary" else {}
        model = HookedTransformer(HookedTransformerConfig(**shared["REFERENCE_SIZES"], **fields, **rotary))
        shapes = {key: tuple(v.shape) for key, v in model.state_dict().items() if not key.endswith(BUFFERS)}
        values = shared["reference_weights"](shapes)
        model.load_and_process_state_dict({key: torch.tensor(value) for key, value in values.items()})
        kept = {key: value for key, value in model.state_dict().items() if key in shapes}
        written[name] = shared["fingerprints"](kept)
    text = json.dumps(written, indent=None).replace("], ", "],\n")
    (HERE / "transformerlens_processed.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
