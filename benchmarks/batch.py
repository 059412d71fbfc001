"""Runs over a data set: harvests against the bare forward pass, scores against PyTorch, and memory against data size.

    python -m benchmarks.batch           prints three tables and writes results/batch-<device>.json
    python -m benchmarks.batch --quick   a small model, few texts; writes nothing

The texts are docstrings of Python's standard library, of all lengths. The bare forward pass is one compiled function
of the same layers, which runs on the same batches and keeps nothing.
"""

import itertools
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

from benchmarks import torch_peer
from benchmarks.corpus import endless, texts
from benchmarks.report import print_table, verdict, write
from benchmarks.smollm2 import PRETRAINED, SMALL, begin, load
from benchmarks.timing import compilations, seconds
from jaxlens import Config, HookedTransformer, batch
from jaxlens.batch.contexts import Batch, Reader, batches
from jaxlens.batch.sources import Source

BATCH_TOKENS = 2048
MAX_LENGTH = 512
N_SCORED = 2000
"""The number of texts that are scored."""
PEER_BATCH = 16
"""The rows of a batch of the PyTorch model, which is padded to its longest row."""


# --- harvests


@jax.jit
def forward(model: HookedTransformer, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """The bare forward pass: the sum of the residual stream before a layer, so that nothing has to be kept."""
    return model(tokens, attention_mask=mask, stop_at_layer=model.cfg.n_layers).sum()


def all_batches(model: HookedTransformer, documents: list[str]) -> list[Batch]:
    """The batches of a harvest of these documents in one shard."""
    contexts = Reader(model, MAX_LENGTH, splits=True).contexts(Source.of(documents))
    return list(batches(contexts, BATCH_TOKENS, MAX_LENGTH))


def harvest_speed(model: HookedTransformer, documents: list[str], rounds: int) -> dict[str, Any]:
    """Tokens per second of a harvest in bfloat16, and of the bare forward pass on the same batches."""
    name = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    chosen = all_batches(model, documents)
    n_tokens = int(sum(each.mask[: len(each.contexts)].sum() for each in chosen))

    def bare() -> None:
        for each in chosen:
            result = forward(model, each.tokens, each.mask)
        jax.block_until_ready(result)

    def harvest() -> None:
        with tempfile.TemporaryDirectory() as folder:
            batch.harvest(
                model, documents, name, folder, dtype="bfloat16", max_length=MAX_LENGTH, batch_tokens=BATCH_TOKENS,
                shard_tokens=1 << 30, progress=False,
            )  # fmt: skip

    def tokenize() -> None:
        for _ in Reader(model, MAX_LENGTH, splits=True).contexts(Source.of(documents)):
            pass

    bare(), harvest(), tokenize()
    pairs = [(seconds(bare), seconds(harvest)) for _ in range(rounds)]
    ratio = median(base / time for base, time in pairs)
    return {"tokens": n_tokens, "bare": n_tokens / median(base for base, _ in pairs),
            "harvest": n_tokens / median(time for _, time in pairs), "ratio": ratio,
            "tokenize": n_tokens / median(seconds(tokenize) for _ in range(rounds))}  # fmt: skip


# --- scores


def peer_scores(model: Any, rows: list[list[int]]) -> list[np.ndarray]:
    """The log-probabilities of rows of tokens in PyTorch, in batches in the order of the data."""
    import torch

    found = []
    for first in range(0, len(rows), PEER_BATCH):
        chosen = rows[first : first + PEER_BATCH]
        width = max(map(len, chosen))
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in chosen])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in chosen])
        with torch.inference_mode():
            logits = model(tokens, attention_mask=mask, use_cache=False).logits[:, :-1]
            log_probs = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0].numpy()
        found += [row[: len(chosen[i]) - 1] for i, row in enumerate(log_probs)]
    return found


def score_speed(model: HookedTransformer, documents: list[str]) -> dict[str, Any]:
    """The time of scores with and without compilation, and of PyTorch's; and the largest difference."""
    rows = [row[:MAX_LENGTH] for row in model.tokenizer.rows(documents)]
    with compilations() as compiled:
        first = seconds(lambda: batch.score(model, rows, batch_tokens=BATCH_TOKENS))
    found: list[np.ndarray] = []
    warm = seconds(lambda: found.extend(batch.score(model, rows, batch_tokens=BATCH_TOKENS)))
    peer = torch_peer.pretrained("sdpa")
    peer_scores(peer, rows[:PEER_BATCH])
    expected: list[np.ndarray] = []
    peer_time = seconds(lambda: expected.extend(peer_scores(peer, rows)))
    n_buckets = len({each.tokens.shape[1] for each in all_batches(model, documents)})
    difference = max(np.abs(a - b).max() for a, b in zip(found, expected, strict=True) if len(a))
    return {
        "texts": len(rows), "tokens": sum(map(len, rows)), "first": first, "warm": warm,
        "peer": peer_time, "speed": peer_time / warm, "speed with compilation": peer_time / first,
        "programs": len(compiled), "buckets": n_buckets, "largest difference": float(difference),
    }  # fmt: skip


# --- memory


def peak_bytes(work: str, n_documents: int) -> int:
    """The largest resident memory of a process that harvests or scores so many documents with a small model."""
    command = [sys.executable, "-m", "benchmarks.batch", "--work", work, str(n_documents)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def do_work(work: str, n_documents: int) -> None:
    tokenizer = HookedTransformer.from_pretrained(PRETRAINED, first_n_layers=1).tokenizer
    model = HookedTransformer(Config(**{**SMALL, "d_vocab": 49152}), tokenizer)
    documents = itertools.islice(endless(), n_documents)
    with tempfile.TemporaryDirectory() as folder:
        if work == "harvest":
            batch.harvest(model, documents, "blocks.*.hook_resid_post", folder, max_length=128, shard_tokens=1 << 13)
        else:
            for _ in batch.score(model, documents, max_length=128):
                pass
    print(largest_resident_bytes())


def largest_resident_bytes() -> int:
    """The largest resident memory of this process. That of `getrusage` would include its parent's, from before exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


# --- the report


def print_harvest(harvest: dict[str, Any]) -> None:
    rows = [["bare forward pass", f"{harvest['bare']:.0f}", "1.00 ×", ""],
            ["harvest, bfloat16", f"{harvest['harvest']:.0f}", f"{harvest['ratio']:.2f} ×",
             verdict(harvest["ratio"], 0.9, at_least=True)],
            ["reading and tokenizing alone", f"{harvest['tokenize']:.0f}",
             f"{harvest['tokenize'] / harvest['bare']:.0f} ×", ""]]  # fmt: skip
    print_table(f"Harvest of {harvest['tokens']:,} tokens", ["", "tokens/s", "ratio", "target"], rows)


def print_scores(score: dict[str, Any]) -> None:
    first = score["speed with compilation"]
    rows = [
        ["PyTorch, sdpa, padded batches", f"{score['peer']:.1f} s", "1.00 ×", ""],
        ["scores", f"{score['warm']:.1f} s", f"{score['speed']:.2f} ×", verdict(score["speed"], 2, at_least=True)],
        ["scores, first call", f"{score['first']:.1f} s", f"{first:.2f} ×", ""],
    ]
    title = f"Scores of {score['texts']:,} texts, {score['tokens']:,} tokens"
    print_table(title, ["", "time", "speed", "target"], rows)
    programs = score["programs"] / score["buckets"]
    print(f"{score['programs']} programs for {score['buckets']} lengths: {verdict(programs, 3)} a length;",
          f"largest difference from PyTorch {score['largest difference']:.1e} nats")  # fmt: skip


def print_memory(memory: dict[str, list[int]]) -> None:
    rows = [[work, *(f"{size / 2**20:.0f} MiB" for size in sizes), f"{sizes[1] / sizes[0]:.2f} ×",
             verdict(sizes[1] / sizes[0], 1.05)] for work, sizes in memory.items()]  # fmt: skip
    print_table("Largest resident memory", ["", "1 ×", "10 × the data", "ratio", "target"], rows)


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        do_work(sys.argv[2], int(sys.argv[3]))
        return
    quick, machine, model, weights = begin(__doc__, "a small model, few texts; write nothing")
    if quick:
        tokenizer = load()[0].tokenizer
        model = HookedTransformer(Config(**{**SMALL, "d_vocab": 49152}), tokenizer)
    results: dict[str, Any] = {"weights": weights, "batch_tokens": BATCH_TOKENS, "max_length": MAX_LENGTH}
    results["harvest"] = harvest_speed(model, texts(60 if quick else 300), 3 if quick else 5)
    print_harvest(results["harvest"])
    if not quick and weights == PRETRAINED:
        results["score"] = score_speed(model, texts(N_SCORED))
        print_scores(results["score"])
    n = 300 if quick else 1000
    results["memory"] = {work: [peak_bytes(work, n), peak_bytes(work, 10 * n)] for work in ("harvest", "score")}
    print_memory(results["memory"])
    if not quick:
        write("batch", machine, results)


if __name__ == "__main__":
    main()
