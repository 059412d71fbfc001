"""The time and memory to load quantized checkpoints and adapters, relative to the same model in float32.

    PYTHONPATH=tests python -m benchmarks.loading           prints a table and writes results/loading-<device>.json
    PYTHONPATH=tests python -m benchmarks.loading --quick   a small model; writes nothing

The checkpoints are written to a temporary folder by transformers and peft, and packed as in tests/test_quantized.py.
Files are read from the page cache. Every load is next to one of the checkpoint in float32. The processor time is
comparable on a busy machine, where the time of a load depends on how many cores it gets. The peak of memory is that of
a process of its own, relative to the parameters in float32.
"""

import argparse
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from support import packers
from support.adapters import config, write_adapter
from support.memory import peak_memory
from support.tiny import write_checkpoint
from test_quantized import AWQ, FP8, GPTQ, INT8, LAYERS, NF4, compressed, edit_config

from benchmarks.report import environment, print_environment, print_table, verdict, write
from benchmarks.timing import interleaved
from jaxlens.checkpoints import load

WIDE = {"hidden_size": 2048, "intermediate_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 32,
        "head_dim": 64, "vocab_size": 1024, "num_hidden_layers": 2}  # fmt: skip
NARROW = WIDE | {"hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 16}
GROUP = 128
TARGET = 1.3


def quantized() -> dict[str, tuple[Any, dict[str, Any]]]:
    """The packer and the `quantization_config` of each method."""
    grouped = functools.partial(functools.partial, size=GROUP)
    in_groups = compressed("pack-quantized", num_bits=4, strategy="group", group_size=GROUP)
    fp8 = functools.partial(packers.float8, height=GROUP, width=GROUP)
    return {
        "LLM.int8()": (packers.llm_int8, INT8),
        "FP8 in blocks": (fp8, FP8 | {"weight_block_size": [GROUP, GROUP]}),
        "4-bit integers in groups": (grouped(packers.int4_words), in_groups),
        "NF4": (packers.nf4, NF4),
        "AWQ": (grouped(packers.awq), AWQ | {"group_size": GROUP}),
        "GPTQ, act-order": (grouped(packers.gptq, seed=3), GPTQ | {"desc_act": True, "group_size": GROUP}),
        "GPTQ, 3 bits": (grouped(packers.gptq, bits=3), GPTQ | {"bits": 3, "group_size": GROUP}),
    }


def packed(base: Path, folder: Path, packer: Any, settings: dict[str, Any]) -> Path:
    """A copy of a checkpoint with packed linear maps."""
    shutil.copytree(base, folder)
    stored = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if LAYERS.search(name):
            parts = packer(weight)[0]
            stored |= {name.removesuffix("weight") + part: tensor.contiguous() for part, tensor in parts.items()}
        else:
            stored[name] = weight
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    edit_config(folder, quantization_config=settings)
    return folder


def checkpoints(root: Path, sizes: dict[str, int]) -> dict[str, Path]:
    """The folder of each checkpoint. The first is that in float32."""
    base = write_checkpoint(root / "float32", "llama", **sizes)
    folders = {"float32": base}
    for i, (name, (packer, settings)) in enumerate(quantized().items()):
        folders[name] = packed(base, root / f"packed-{i}", packer, settings)
    for name, fields in {"LoRA of rank 16, merged": {}, "DoRA of rank 16, merged": {"use_dora": True}}.items():
        folder = folders[name] = root / name.split()[0]
        write_adapter(folder, base, config("all-linear", r=16, **fields))
    return folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model; write nothing")
    quick, machine = parser.parse_args().quick, environment()
    print_environment(machine)
    with tempfile.TemporaryDirectory() as root:
        folders = checkpoints(Path(root), NARROW if quick else WIDE)
        cases = {name: lambda call, folder=folder: load(folder).params for name, folder in folders.items()}
        timings = interleaved(cases, 3 if quick else 9)
        tiny = write_checkpoint(Path(root) / "tiny", "llama")
        peaks = dict(zip(folders, peak_memory(tiny, folders.values()), strict=True))
    results = {
        name: {"seconds": timing.warm, "ratio": timing.ratio, "processor_ratio": timing.processor_ratio,
               "peak_memory": peaks[name]}
        for name, timing in timings.items()
    }  # fmt: skip
    rows = [
        [name, f"{timing.warm * 1000:.0f} ms", f"{timing.ratio:.2f} ×", f"{timing.processor_ratio:.2f} ×",
         verdict(timing.processor_ratio, TARGET), f"{peaks[name]:.2f} ×", verdict(peaks[name], TARGET)]
        for name, timing in timings.items()
    ]  # fmt: skip
    columns = ["checkpoint", "time", "× float32", "processor time", "target", "peak memory", "target"]
    print_table("Loading from the page cache; medians", columns, rows)
    if not quick:
        write("loading", machine, results)


if __name__ == "__main__":
    main()
