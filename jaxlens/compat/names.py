"""Names of TransformerLens's top level that `jaxlens` does not define: modules imported late, and what is not here."""

import importlib
from typing import Any

LATE = ("loading_from_pretrained", "train")
"""Modules that are imported when they are first used."""

DECODERS = "jaxlens runs decoder-only transformers"
ABSENT = {
    "BertNextSentencePrediction": DECODERS, "HookedAudioEncoder": DECODERS, "HookedEncoder": DECODERS,
    "HookedEncoderDecoder": DECODERS, "TransformerBridge": "use HookedTransformer",
    "TransformerBridgeConfig": "use HookedTransformerConfig",
    "components": "the parts of a model are in jaxlens.nn, and under model.blocks[0].attn and the like",
}  # fmt: skip


def find(name: str) -> Any:
    """The attribute `name` of the package, which does not have it yet.

    Raises:
        ImportError: it is a name of TransformerLens's, and something else is to be used. (Of an AttributeError, which
            any other name gives, `from jaxlens import ...` would not show the text.)
    """
    if name in LATE:
        return importlib.import_module(f"jaxlens.{name}")
    if name in ABSENT:
        raise ImportError(f"jaxlens has no {name}: {ABSENT[name]}")
    raise AttributeError(f"module 'jaxlens' has no attribute {name!r}")
