"""Reads and writes checkpoints: Hugging Face folders and ids, GGUF files, and folders in jaxlens's native format.

Example:
    loaded = load("path/to/folder")  # cfg, params, tokenizer, and source, which is the original config.json
    export("new/folder", loaded.cfg, loaded.params, loaded.source)
"""

from jaxlens.checkpoints.exporter import export
from jaxlens.checkpoints.families import all_families
from jaxlens.checkpoints.loader import Loaded, load, load_lazily
from jaxlens.checkpoints.open import Checkpoint, open_checkpoint
from jaxlens.checkpoints.rules.rule import Family, Rule

__all__ = ["Checkpoint", "Family", "Loaded", "Rule", "all_families", "export", "load", "load_lazily", "open_checkpoint"]
