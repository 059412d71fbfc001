"""What a long context costs in memory: nothing until it is used, and then no more than a block of queries at a time.

    python -m benchmarks.memory           prints both tables and writes results/memory-<device>.json
    python -m benchmarks.memory --quick   shorter sequences; writes nothing

Nothing here runs the model: the bytes are those of its parameters and those that the compiler plans for (XLA's own
`memory_analysis`), so they do not depend on how busy the machine is.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.report import environment, print_environment, print_table, write
from jaxlens import Config, HookedTransformer

SHAPE: dict[str, Any] = {
    "n_layers": 4,
    "d_model": 256,
    "n_heads": 4,
    "n_key_value_heads": 2,
    "d_head": 64,
    "d_mlp": 1024,
    "d_vocab": 512,
    "act_fn": "silu",
    "gated_mlp": True,
    "normalization_type": "RMS",
    "biases": (),
    "positional_embedding_type": "rotary",
}
CONTEXTS = (1024, 131072)
SHORT = 512
WINDOW = 512
WINDOWS = {"global": None, "local": WINDOW, "alternating": (WINDOW, None) * 2}


def logits(model: HookedTransformer, tokens: jax.Array) -> jax.Array:
    return model(tokens)


def gradient(model: HookedTransformer, tokens: jax.Array) -> HookedTransformer:
    return jax.grad(lambda model: model(tokens, return_type="loss"))(model)


PROGRAMS = {"forward": logits, "gradient of the loss": gradient}


def planned_bytes(cfg: Config, length: int, program: Callable) -> dict[str, int]:
    """The memory that the compiler plans for a program on one sequence of this length."""
    model = jax.eval_shape(lambda: HookedTransformer(cfg))
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    plan = jax.jit(program).lower(model, tokens).compile().memory_analysis()
    return {
        "temporary": plan.temp_size_in_bytes,
        "arguments": plan.argument_size_in_bytes,
        "results": plan.output_size_in_bytes,
    }


def parameter_bytes(cfg: Config) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(_shapes(cfg)))


def _shapes(cfg: Config) -> Any:
    return jax.eval_shape(lambda: HookedTransformer(cfg).params)


def compare_contexts() -> dict[str, Any]:
    """The same model with a short and a long context, at the same sequence length."""
    found: dict[str, Any] = {}
    for n_ctx in CONTEXTS:
        cfg = Config(**SHAPE, n_ctx=n_ctx)
        found[str(n_ctx)] = {"parameters": parameter_bytes(cfg)} | {
            name: planned_bytes(cfg, SHORT, program) for name, program in PROGRAMS.items()
        }
    rows = [["parameters", *(mib(found[str(n_ctx)]["parameters"]) for n_ctx in CONTEXTS)]]
    for name in PROGRAMS:
        for kind in ("temporary", "arguments", "results"):
            rows.append([f"{name}, {kind}", *(mib(found[str(n_ctx)][name][kind]) for n_ctx in CONTEXTS)])
    rows.append([f"one mask of [{CONTEXTS[1]}, {CONTEXTS[1]}] would be", "", mib(CONTEXTS[1] ** 2)])
    header = [f"MiB at {SHORT} tokens", *(f"n_ctx = {n_ctx}" for n_ctx in CONTEXTS)]
    print_table("A longer context that is not used", header, rows)
    equal = found[str(CONTEXTS[0])] == found[str(CONTEXTS[1])]
    print("  equal to the byte" if equal else "  NOT equal")
    return {"tokens": SHORT, "by_n_ctx": found, "equal": equal}


def compare_attention(lengths: tuple[int, ...], block: int) -> list[dict[str, Any]]:
    """Explicit against blockwise attention, for layers that see everything, a window, or take turns."""
    found = []
    for name, program in PROGRAMS.items():
        for kind, windows in WINDOWS.items():
            for length in lengths:
                cfg = Config(**SHAPE, n_ctx=max(lengths), windows=windows)
                explicit, blockwise = (
                    planned_bytes(cfg.replace(attn_block=size), length, program)["temporary"] for size in (length, block)
                )
                found.append({
                    "program": name, "layers": kind, "tokens": length, "explicit": explicit, "blockwise": blockwise,
                })  # fmt: skip
    rows = [
        [f"{e['program']}, {e['layers']}", str(e["tokens"]), mib(e["explicit"]), mib(e["blockwise"]),
         f"{e['blockwise'] / e['explicit']:.3f}", mib(4 * SHAPE["n_heads"] * e["tokens"] ** 2)]
        for e in found
    ]  # fmt: skip
    header = ["temporary MiB", "tokens", "explicit", "blockwise", "ratio", "scores of one layer"]
    print_table(f"Attention in blocks of {block} queries; windows of {WINDOW}", header, rows)
    return found


def mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.2f}"


def main() -> None:
    """Prints both tables and saves them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="shorter sequences; nothing is saved")
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)

    where = environment()
    print_environment(where)
    lengths, block = ((1024, 2048), 256) if options.quick else ((2048, 8192), 1024)
    results = {
        "shape": SHAPE,
        "unused_context": compare_contexts(),
        "attention": {"block": block, "window": WINDOW, "temporary_bytes": compare_attention(lengths, block)},
    }
    if not options.quick:
        write("memory", where, results)


if __name__ == "__main__":
    main()
