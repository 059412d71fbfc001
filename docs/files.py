"""Writes files.md from the tables of what can be read: `python docs/files.py`."""

from collections.abc import Iterable
from pathlib import Path

from jaxlens.checkpoints import readable
from jaxlens.checkpoints.gguf.architectures import ARCHITECTURES
from jaxlens.checkpoints.gguf.pre_tokenizers import PRE_TOKENIZERS
from jaxlens.checkpoints.gguf.tensors import TYPES
from jaxlens.checkpoints.gguf.vocabulary import OTHER_MODELS

HEADER = """# Which files can be read

Generated from the tables of `jaxlens/checkpoints/` by `make pages`; do not edit.

`jaxlens inspect PATH` tells what a checkpoint is, and what of it cannot be read, without reading its weights. Weights
are read tensor by tensor, and dequantized when they are read. [models.md](models.md) lists the architectures.
"""

ARCHITECTURES_NOTE = """Tensors have the values of the original checkpoint, up to quantization. Some fields of
config.json are not in the files of llama.cpp's converter. The activation is that of the published models. Windows that
the converter leaves out (Mistral, Qwen 2, StarCoder 2) are absent, and so are dynamic scalings. Llama 3's scaling is
stored as one divisor per frequency, and is read as LongRoPE with these divisors."""

VOCABULARIES_NOTE = """`tokenizer.ggml.model` is `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE). {refused} are
refused; pass the original tokenizer as `tokenizer=`. In `gpt2`, text is split into words in the way that
`tokenizer.ggml.pre` names:"""


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def page() -> str:
    """The page as Markdown."""
    lines = [HEADER]
    sections = {
        "What a checkpoint is called": (("name", "what it is", "notes"), readable.REPOSITORIES),
        "Files with weights": (("files", "format", "notes"), readable.FILES),
        "Quantized safetensors": (("`quant_method`", "what it is", "notes"), readable.QUANTIZED),
        "Adapters": (("files", "what it is", "notes"), readable.ADAPTERS),
        "Multimodal checkpoints": (("`model_type`", "parts that are not read, and their modules"), readable.MULTIMODAL),
    }
    for title, (head, rows) in sections.items():
        lines += [f"## {title}", "", *table(head, rows)] if rows else []
    lines += ["## GGUF: types of tensors", "", f"{code(TYPES)}. Names of files such as Q4_K_M stand for mixtures.", ""]
    lines += ["## GGUF: architectures", "", ARCHITECTURES_NOTE, ""]
    lines += table(
        ("`general.architecture`", "read as `model_type`", "models"),
        ((f"`{name}`", code(entry.model_types), entry.models) for name, entry in sorted(ARCHITECTURES.items())),
    )
    lines += ["## GGUF: vocabularies", "", VOCABULARIES_NOTE.format(refused=code(OTHER_MODELS)), ""]
    ways: dict[object, list[str]] = {}
    for name, splitting in PRE_TOKENIZERS.items():
        ways.setdefault(splitting, []).append(name)
    notes = {"nfc": "NFC", "ignore_merges": "words of the vocabulary are not split", "add_bos": "BOS by default"}
    lines += table(("`tokenizer.ggml.pre`", "notes"), (
        (code(names), ", ".join(note for field, note in notes.items() if getattr(splitting, field)))
        for splitting, names in ways.items()
    ))  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), "utf-8")
