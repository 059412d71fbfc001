"""The memory of a long context: nothing while it is unused, and then the scores of one block of queries.

    python -m benchmarks.memory           prints both tables and writes results/memory-<device>.json
    python -m benchmarks.memory --quick   shorter sequences; writes nothing

The numbers are the sizes of arrays and XLA's `memory_analysis` of compiled programs. They do not depend on the load of
the machine. The second table uses models without MLPs, because the activations of an MLP would dominate.
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
WITH_MLP: dict[str, Any] = {**ATTENTION, "d_mlp": 1024, "act_fn": "silu", "gated_mlp": True}
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
    """The memory of a compiled program for a single sequence of this length."""
    model = jax.eval_shape(lambda: HookedTransformer(cfg))
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    plan = jax.jit(program).lower(model, tokens).compile().memory_analysis()
    return {
        "temporary": plan.temp_size_in_bytes,
        "arguments": plan.argument_size_in_bytes,
        "results": plan.output_size_in_bytes,
    }


def array_bytes(cfg: Config) -> dict[str, int]:
    """The bytes of a model's parameters, and of all arrays that are alive after its construction and a forward."""
    gc.collect()
    before = {id(array) for array in jax.live_arrays()}
    model = HookedTransformer(cfg)
    output = jax.block_until_ready(model(jnp.zeros((1, SHORT), jnp.int32)))
    alive = sum(array.nbytes for array in jax.live_arrays() if id(array) not in before)
    del output
    return {"parameters": sum(value.nbytes for value in model.params.values()), "alive": alive}


def compare_contexts() -> dict[str, Any]:
    """Compares a model with a short and a long context, at the same sequence length."""
    results: dict[str, dict[str, int]] = {}
    for n_ctx in CONTEXTS:
        cfg = Config(**WITH_MLP, n_ctx=n_ctx)
        arrays = array_bytes(cfg)
        results[f"{n_ctx}"] = {
            "parameters": arrays["parameters"],
            "all arrays alive after construction and a forward": arrays["alive"],
            **{
                f"{name}, {kind}": n_bytes
                for name, program in PROGRAMS.items()
                for kind, n_bytes in planned_bytes(cfg, SHORT, program).items()
            },
        }
    short, long = results.values()
    rows = [[name, mib(short[name]), mib(long[name])] for name in short]
    rows.append(["for comparison, a mask [n_ctx, n_ctx]", *(mib(n_ctx**2) for n_ctx in CONTEXTS)])
    header = [f"MiB at {SHORT} tokens", *(f"n_ctx = {n_ctx}" for n_ctx in CONTEXTS)]
    print_table("A longer context at the same sequence length", header, rows)
    print("  equal to the byte" if short == long else "  NOT equal")
    return {"tokens": SHORT, "bytes_by_n_ctx": results, "equal": short == long}


def compare_attention(lengths: tuple[int, ...], block: int) -> list[dict[str, Any]]:
    """Compares explicit and blockwise attention, for global layers, local layers, and alternating layers."""
    results = []
    for name, program in PROGRAMS.items():
        for kind, windows in WINDOWS.items():
            for length in lengths:
                cfg = Config(**ATTENTION, attn_only=True, n_ctx=max(lengths), windows=windows)
                explicit, blockwise = (
                    planned_bytes(cfg.replace(attn_block=queries), length, program)["temporary"]
                    for queries in (length, block)
                )
                results.append({
                    "program": name, "layers": kind, "tokens": length, "explicit": explicit, "blockwise": blockwise,
                })  # fmt: skip
    rows = [
        [f"{e['program']}, {e['layers']}", str(e["tokens"]), mib(e["explicit"]), mib(e["blockwise"]),
         f"{e['blockwise'] / e['explicit']:.3f}", mib(4 * ATTENTION["n_heads"] * e["tokens"] ** 2)]
        for e in results
    ]  # fmt: skip
    header = ["temporary MiB", "tokens", "explicit", "blockwise", "ratio", "scores of one layer"]
    print_table(f"Attention in blocks of {block} queries; windows of {WINDOW}", header, rows)
    return results


def mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.2f}"


def main() -> None:
    """Prints both tables, and saves them unless `--quick`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="shorter sequences; nothing is saved")
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)

    machine = environment()
    print_environment(machine)
    lengths, block = (1024, 2048) if options.quick else (2048, 8192), 256
    results = {
        "shape": WITH_MLP,
        "unused_context": compare_contexts(),
        "attention": {"block": block, "window": WINDOW, "temporary_bytes": compare_attention(lengths, block)},
    }
    if not options.quick:
        write("memory", machine, results)


if __name__ == "__main__":
    main()
