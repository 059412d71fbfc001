"""`jaxlens inspect`: the sizes, attention layers and problems of a checkpoint."""

import argparse
from collections.abc import Iterator

from jaxlens.checkpoints.families import described
from jaxlens.checkpoints.inspector import Look, look
from jaxlens.checkpoints.validate import UNKNOWN_TENSORS
from jaxlens.cli.commands.command import Command, add_adapter
from jaxlens.config import Config, Rotary

WIDTH = 8
"""The number of rows and columns in the drawing of an attention mask."""


def run(arguments: argparse.Namespace) -> int:
    """Shows the sizes and attention layers of a checkpoint. Reads its headers, but no weights.

    Each layer is shown as a letter: G for global attention, L for attention with a window. Layers with another window
    or rotary embedding have the next letters, H and M. The exit status is 1 if config.json has fields that jaxlens does
    not read, or if tensors do not match config.json. Such a checkpoint cannot be loaded.
    """
    inspected = look(arguments.source, adapter=arguments.adapter)
    print("\n".join(report(inspected)))
    return 0 if inspected.loads else 1


def report(inspected: Look) -> Iterator[str]:
    """The lines that `jaxlens inspect` prints."""
    checkpoint, cfg = inspected.checkpoint, inspected.checkpoint.cfg
    types = checkpoint.family.model_types
    (description,) = (entry for entry in described() if entry.family.model_types == types)
    yield f"{'checkpoint':12}{checkpoint.path}"
    yield f"{'format':12}{checkpoint.format}"
    if checkpoint.part_of is not None:
        parts = ", ".join(f"{count} tensors of the {part} part" for part, count in inspected.other_parts.items())
        yield f"{'part':12}text part of a {checkpoint.part_of} checkpoint; {parts} are not read"
    yield f"{'family':12}{', '.join(types)}: {description.summary}"
    if checkpoint.quantization:
        yield f"{'quantized':12}{checkpoint.quantization}; dequantized when it is read"
    yield f"{'sizes':12}{sizes(cfg)}"
    if cfg.output_head != "next_token":
        yield f"{'outputs':12}{outputs(cfg)}"
    yield f"{'parameters':12}{inspected.parameters:,}"
    yield f"{'memory':12}{', '.join(f'{dtype} {human(size)}' for dtype, size in inspected.memory().items())}"
    if checkpoint.adapter is not None:
        yield f"{'adapter':12}{checkpoint.adapter}"
    yield from attention(inspected)
    fields = [f"{name} = {value!r}" for name, value in checkpoint.unread.items()]
    yield from listed("config.json fields that jaxlens does not read", fields)
    for problem, tensors in ({UNKNOWN_TENSORS: []} | inspected.problems).items():
        yield from listed(f"tensors that are {problem}", tensors)


def sizes(cfg: Config) -> str:
    """The number of layers and heads, and the widths of the model."""
    kv_heads = "" if cfg.n_key_value_heads == cfg.n_heads else f" ({cfg.n_key_value_heads} key/value heads)"
    mlp = f", d_mlp {cfg.d_mlp:,}" if cfg.d_mlp else ""
    if cfg.num_experts:
        mlp += f", {cfg.num_experts} experts of size {cfg.d_expert:,} ({cfg.experts_per_token} per token)"
    return (
        f"{cfg.n_layers} layers, d_model {cfg.d_model:,}, {cfg.n_heads} heads of size {cfg.d_head}{kv_heads}{mlp}, "
        f"vocabulary {cfg.d_vocab:,}, context {cfg.n_ctx:,}"
    )


def outputs(cfg: Config) -> str:
    """What the model computes from the residual stream, if not logits of the next token."""
    if cfg.output_head is None:
        return "none: no unembedding, so everything but logits and loss"
    labels = f"scores of {cfg.d_vocab_out} label{'s'[: cfg.d_vocab_out != 1]}"
    return f"{labels} for {'the sequence' if cfg.output_head == 'sequence_labels' else 'each token'}"


def human(size: float) -> str:
    """A number of bytes in a readable unit.

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
    """A title with the number of entries, and a line per entry."""
    yield f"{title}: {len(entries) or 'none'}"
    yield from (f"  {entry}" for entry in entries)


# --- the drawing of attention


def attention(inspected: Look) -> Iterator[str]:
    """A line with a letter for each layer, and the description and mask of each letter."""
    cfg, layers = inspected.checkpoint.cfg, inspected.attention()
    letters: dict[tuple[int | None, Rotary | None], str] = {}
    for window, rotary in layers:
        first = "G" if window is None else "L"
        used = sum((other is None) == (window is None) for other, _ in letters)
        letters.setdefault((window, rotary), chr(ord(first) + used))
    yield f"{'attention':12}" + "".join(f"{layer:<10}" for layer in range(0, cfg.n_layers, 10)).rstrip()
    yield " " * 12 + "".join(letters[kind] for kind in layers)
    kinds = [(letter, *kind) for kind, letter in letters.items()]
    for letter, window, rotary in kinds:
        span = "all previous positions" if window is None else f"a window of {window:,}"
        yield f"{letter:>10}  {span}, {positions(cfg, rotary)}"
    for row in range(WIDTH):
        yield (" " * 14 + (" " * 6).join(mask_row(row, window, cfg.n_ctx) for _, window, _ in kinds)).rstrip()


def mask_row(row: int, window: int | None, n_ctx: int) -> str:
    """A row of an attention mask. Each character stands for an eighth of the context.

    Example:
        >>> mask_row(3, None, 64), mask_row(3, 12, 64)
        ('####....', '..##....')
    """
    reach = WIDTH if window is None else max(1, -(-window * WIDTH // n_ctx))
    return "".join("#" if row - reach < column <= row else "." for column in range(WIDTH))


def positions(cfg: Config, rotary: Rotary | None) -> str:
    """The positional embedding of a layer."""
    if cfg.positional_embedding_type != "rotary":
        return f"positions: {cfg.positional_embedding_type}"
    if rotary is None:
        return "no positions"
    rotated = "" if rotary.dim in (None, cfg.d_head) else f" on {rotary.dim} of {cfg.d_head} dimensions"
    scaling = "" if rotary.scaling is None else f", scaling {type(rotary.scaling).__name__}"
    factor = getattr(rotary.scaling, "factor", None)
    return f"rope base {rotary.base:,.10g}{rotated}{scaling}{'' if factor is None else f' by {factor:g}'}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a Hugging Face id, a local folder, or a .gguf file")
    add_adapter(parser)


COMMAND = Command(
    "show the contents of a checkpoint without loading it", run, run.__doc__, "jaxlens inspect path/to/folder",
    add_arguments, takes_model=False,
)  # fmt: skip
