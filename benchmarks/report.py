"""The environment of a benchmark, its printed tables and its results file."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")


def environment() -> dict[str, Any]:
    """The device, the package versions, the commit, and the load of the machine before the benchmark."""
    return {
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this checkout, with a note if files were changed. None without git or a repository."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", "..", ":!results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit} with local changes" if changed else commit


def print_environment(machine: dict[str, Any]) -> None:
    """Prints a line with the machine and the versions."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    load = f"load average {machine['load_average_at_start']:.1f} at the start"
    print(f"{machine['device']}, {machine['cores']} cores, {load}; Python {machine['python']}, {versions}")


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints rows of text under a header. The first column is aligned left, the others right."""
    rows = [list(row) for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *rows]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, *others = row
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        return "  ".join(cells).rstrip()

    print(f"\n{title}\n{line(header)}\n{'─' * len(line(header))}", *map(line, rows), sep="\n", flush=True)


def verdict(value: float, target: float | None, at_least: bool = False) -> str:
    """Whether a value is within its target, for the last column of a table. Empty without a target."""
    if target is None:
        return ""
    holds = value >= target if at_least else value <= target
    return f"{'≥' if at_least else '≤'} {target:g} {'holds' if holds else 'MISSED'}"


def write(name: str, machine: dict[str, Any], results: dict[str, Any]) -> None:
    """Saves the results as results/<name>-<device>.json."""
    device = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")
    path = RESULTS / f"{name}-{device}.json"
    path.parent.mkdir(exist_ok=True)
    machine = {**machine, "load_average_at_end": os.getloadavg()[0]}
    path.write_text(json.dumps({"environment": machine, **results}, indent=2) + "\n")
    print(f"\nResults saved to {path}")
