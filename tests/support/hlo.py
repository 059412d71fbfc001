"""Reading compiled HLO: which arrays exist outside fusions."""

import re


def buffers(text: str) -> list[tuple[str, tuple[int, ...], str]]:
    """(dtype, shape, instruction) of every array that an instruction outside fusion computations produces."""
    found = []
    for computation in re.split(r"\n(?=\S)", text):
        header = computation.split("\n", 1)[0]
        if "fused_computation" in header or "fusion" in header.split("(")[0]:
            continue
        for line in computation.split("\n")[1:]:
            if "=" in line:
                for dtype, shape in re.findall(r"\b(pred|bf16|[sfu]\d+)\[([\d,]*)\]", _result(line)):
                    found.append((dtype, tuple(int(n) for n in shape.split(",") if n), line.strip()))
    return found


def _result(line: str) -> str:
    """The type of an instruction's result, all members of a tuple included."""
    right = line.split("=", 1)[1].strip()
    return right[: right.index(")") + 1] if right.startswith("(") else right.split(" ", 1)[0]


def mask_buffers(text: str, length: int) -> list[str]:
    """Instructions that keep a mask: integers or booleans with two axes as long as the sequence."""
    return [
        line
        for dtype, shape, line in buffers(text)
        if dtype[0] in "psu" and sum(size == length for size in shape) >= 2
    ]
