"""The memory that loading a checkpoint takes."""

import subprocess
import sys

PROGRAM = """
import sys
from pathlib import Path
from jaxlens.checkpoints import load

def kilobytes(field):
    return int(next(line for line in open("/proc/self/status") if line.startswith(field)).split()[1])

load(sys.argv[1])  # imports what loading needs
for large in sys.argv[2:]:
    before = kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    loaded = load(large)
    print((kilobytes("VmHWM") - before) * 1024 / sum(value.nbytes for value in loaded.params.values()))
    held = globals().setdefault("held", []) + [loaded]
"""


def peak_memory(first, folders):
    """The peak memory of loading each folder, relative to its parameters in float32, on Linux.

    `first` is a similar checkpoint that is loaded before. Nothing is freed, so every load needs new memory.
    """
    program = [sys.executable, "-c", PROGRAM, *map(str, (first, *folders))]
    output = subprocess.run(program, check=True, capture_output=True, text=True).stdout
    return [float(ratio) for ratio in output.split()]
