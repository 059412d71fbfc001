"""What a long context costs in memory: nothing until it is used, and then no more than a block of queries at a time.

    python -m benchmarks.memory           prints both tables and writes results/memory-<device>.json
    python -m benchmarks.memory --quick   shorter sequences; writes nothing

Bytes are those of arrays, and those that the compiler plans for (XLA's own `memory_analysis`), so they do not depend on
how busy the machine is. The second table is of models without MLPs, whose activations would hide what attention takes.
"""

import argparse
import gc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.report import environment, print_environment, print_table, write
from jaxlens import Config, HookedTransformer

ATTENTION: dict[str, Any] = {
    "n_layers": 4,
    "d_model": 256,
    "n_heads": 4,
    "n_key_value_heads": 2,
    "d_head": 64,
    "d_vocab": 512,
    "normalization_type": "RMS",
    "biases": (),
    "positional_embedding_type": "rotary",
}
WHOLE: dict[str, Any] = {**ATTENTION, "d_mlp": 1024, "act_fn": "silu", "gated_mlp": True}
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


def array_bytes(cfg: Config) -> dict[str, int]:
    """The parameters of a model, and every array that is alive after it was made and has run."""
    gc.collect()
    before = {id(array) for array in jax.live_arrays()}
    model = HookedTransformer(cfg)
    output = jax.block_until_ready(model(jnp.zeros((1, SHORT), jnp.int32)))
    alive = sum(array.nbytes for array in jax.live_arrays() if id(array) not in before)
    del output
    return {"parameters": sum(value.nbytes for value in model.params.values()), "alive": alive}


def compare_contexts() -> dict[str, Any]:
    """The same model with a short and a long context, at the same sequence length."""
    found: dict[str, dict[str, int]] = {}
    for n_ctx in CONTEXTS:
        cfg = Config(**WHOLE, n_ctx=n_ctx)
        bytes_of = array_bytes(cfg)
        found[f"{n_ctx}"] = {
            "parameters": bytes_of["parameters"],
            "all arrays alive after construction and a forward": bytes_of["alive"],
            **{
                f"{name}, {kind}": n_bytes
                for name, program in PROGRAMS.items()
                for kind, n_bytes in planned_bytes(cfg, SHORT, program).items()
            },
        }
    short, long = found.values()
    rows = [[name, mib(short[name]), mib(long[name])] for name in short]
    rows.append(["a mask of [n_ctx, n_ctx] would be", *(mib(n_ctx**2) for n_ctx in CONTEXTS)])
    header = [f"MiB at {SHORT} tokens", *(f"n_ctx = {n_ctx}" for n_ctx in CONTEXTS)]
    print_table("A longer context that is not used", header, rows)
    print("  equal to the byte" if short == long else "  NOT equal")
    return {"tokens": SHORT, "bytes_by_n_ctx": found, "equal": short == long}


def compare_attention(lengths: tuple[int, ...], block: int) -> list[dict[str, Any]]:
    """Explicit against blockwise attention, for layers that see everything, a window, or take turns."""
    found = []
    for name, program in PROGRAMS.items():
        for kind, windows in WINDOWS.items():
            for length in lengths:
                cfg = Config(**ATTENTION, attn_only=True, n_ctx=max(lengths), windows=windows)
                explicit, blockwise = (
                    planned_bytes(cfg.replace(attn_block=queries), length, program)["temporary"]
                    for queries in (length, block)
                )
                found.append({
                    "program": name, "layers": kind, "tokens": length, "explicit": explicit, "blockwise": blockwise,
                })  # fmt: skip
    rows = [
        [f"{e['program']}, {e['layers']}", str(e["tokens"]), mib(e["explicit"]), mib(e["blockwise"]),
         f"{e['blockwise'] / e['explicit']:.3f}", mib(4 * ATTENTION["n_heads"] * e["tokens"] ** 2)]
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
        "shape": WHOLE,
        "unused_context": compare_contexts(),
        "attention": {"block": block, "window": WINDOW, "temporary_bytes": compare_attention(lengths, block)},
    }
    if not options.quick:
        write("memory", where, results)


if __name__ == "__main__":
    main()
