"""`jaxlens inspect`: what a checkpoint holds, and whether all of it is understood."""

import argparse
from collections.abc import Iterator

from jaxlens.commands.command import Command
from jaxlens.config import Config, Rotary
from jaxlens.convert.checking import UNMAPPED
from jaxlens.convert.families import described
from jaxlens.convert.looking import Look, look

WIDTH = 8
"""Rows and columns of the drawing of an attention pattern."""


def run(arguments: argparse.Namespace) -> int:
    """Shows what a checkpoint holds, reading its headers and none of its weights.

    Each layer is drawn as a letter: G for one that sees the whole past, L for one that sees a window of it, and the
    letters after these where layers of a kind turn queries and keys differently. The exit status is 1 if there are
    config fields that nothing reads, or tensors that do not fit: such a checkpoint is not loaded.
    """
    found = look(arguments.source)
    print("\n".join(lines(found)))
    return 0 if found.loads else 1


def lines(found: Look) -> Iterator[str]:
    """What is printed."""
    checkpoint, cfg = found.checkpoint, found.checkpoint.cfg
    (kind,) = (kind for kind in described() if kind.family is checkpoint.family)
    yield f"{'checkpoint':12}{checkpoint.path}"
    yield f"{'family':12}{', '.join(checkpoint.family.model_types)}: {kind.summary}"
    yield f"{'sizes':12}{sizes(cfg)}"
    yield f"{'parameters':12}{found.parameters:,}"
    yield f"{'memory':12}{', '.join(f'{dtype} {human(size)}' for dtype, size in found.memory().items())}"
    yield from attention(found)
    fields = [f"{name} = {value!r}" for name, value in checkpoint.unread.items()]
    yield from listed("fields that nothing reads", fields)
    for problem, tensors in ({UNMAPPED: []} | found.problems).items():
        yield from listed(f"tensors that are {problem}", tensors)


def sizes(cfg: Config) -> str:
    """How many and how large."""
    heads = "" if cfg.n_key_value_heads == cfg.n_heads else f" on {cfg.n_key_value_heads} of keys and values"
    mlp = f", d_mlp {cfg.d_mlp:,}" if cfg.d_mlp else ""
    if cfg.num_experts:
        mlp += f", {cfg.num_experts} experts of {cfg.d_expert:,} ({cfg.experts_per_token} a token)"
    return (
        f"{cfg.n_layers} layers, d_model {cfg.d_model:,}, {cfg.n_heads} heads of {cfg.d_head}{heads}{mlp}, "
        f"vocabulary {cfg.d_vocab:,}, context {cfg.n_ctx:,}"
    )


def human(size: float) -> str:
    """A number of bytes in the unit in which it is easy to read.

    Example:
        >>> human(538_060_032), human(17)
        ('513.1 MiB', '17 B')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            break
        size, unit = size / 1024, "TiB"
    return f"{size:.1f} {unit}" if unit != "B" else f"{size} {unit}"


def listed(title: str, entries: list[str]) -> Iterator[str]:
    """A title and what is under it, a line each."""
    yield f"{title}: {len(entries) or 'none'}"
    yield from (f"  {entry}" for entry in entries)


# --- the drawing of attention


def attention(found: Look) -> Iterator[str]:
    """A letter for each layer, and what each letter stands for."""
    cfg, layers = found.checkpoint.cfg, found.attention()
    letters: dict[tuple[int | None, Rotary | None], str] = {}
    for window, rotary in layers:
        first, before = "G" if window is None else "L", sum((one is None) == (window is None) for one, _ in letters)
        letters.setdefault((window, rotary), chr(ord(first) + before))
    yield f"{'attention':12}" + "".join(f"{layer:<10}" for layer in range(0, cfg.n_layers, 10)).rstrip()
    yield " " * 12 + "".join(letters[kind] for kind in layers)
    kinds = [(letter, *kind) for kind, letter in letters.items()]
    for letter, window, rotary in kinds:
        seen = "the whole past" if window is None else f"the last {window:,}"
        yield f"{letter:>10}  {seen}, {positions(cfg, rotary)}"
    for row in range(WIDTH):
        yield (" " * 14 + (" " * 6).join(visible(row, window, cfg.n_ctx) for _, window, _ in kinds)).rstrip()


def visible(row: int, window: int | None, n_ctx: int) -> str:
    """A row of a drawn pattern, each cell an eighth of the context: what its last query sees.

    Example:
        >>> visible(3, None, 64), visible(3, 12, 64)
        ('####....', '..##....')
    """
    reach = WIDTH if window is None else max(1, -(-window * WIDTH // n_ctx))
    return "".join("#" if row - reach < column <= row else "." for column in range(WIDTH))


def positions(cfg: Config, rotary: Rotary | None) -> str:
    """How a layer knows where its tokens stand."""
    if cfg.positional_embedding_type != "rotary":
        return f"positions: {cfg.positional_embedding_type}"
    if rotary is None:
        return "no positions"
    turned = "" if rotary.dim in (None, cfg.d_head) else f" of {rotary.dim} dimensions in {cfg.d_head}"
    scaling = "" if rotary.scaling is None else f", scaled: {type(rotary.scaling).__name__}"
    factor = getattr(rotary.scaling, "factor", None)
    return f"rope base {rotary.base:,.10g}{turned}{scaling}{'' if factor is None else f' by {factor:g}'}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a Hugging Face id, a local folder, or a .gguf file")


COMMAND = Command(
    "what a checkpoint holds, without its weights", run, run.__doc__, "jaxlens inspect path/to/folder", add_arguments,
    takes_model=False,
)  # fmt: skip
