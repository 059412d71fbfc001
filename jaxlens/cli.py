"""The command line: `jaxlens demo`, `jaxlens hooks`.

A subcommand is a function of its parsed arguments and a row in `COMMANDS`.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path

from jaxlens.errors import ActivationNotFound
from jaxlens.hook_table import Site, sites, split_name

DEFAULT_MODEL = "smollm2-135m-instruct"


def run_demo(arguments: argparse.Namespace) -> None:
    """Runs the demonstration."""
    from jaxlens.demo import demo

    demo(arguments.model, arguments.out)


def list_hooks(arguments: argparse.Namespace) -> None:
    """Prints every hook point of a model once, reading its config and none of its weights."""
    from jaxlens.convert import open_checkpoint

    cfg = open_checkpoint(arguments.model).cfg
    layers: dict[Site, list[int | None]] = {}
    for name, site in sites(cfg).items():
        layers.setdefault(site, []).append(split_name(name)[1])
    print(f"{'name':32} {'axes':9} meaning")
    for site, held in layers.items():
        name = site.name if held == [None] else f"blocks.{{l}}.{site.name}"
        where = "" if held == [None] or len(held) == cfg.n_layers else f" (layers {', '.join(map(str, held))})"
        print(f"{name:32} {site.axes:9} {site.meaning}{where}{' (on request)' if site.on_request else ''}")
    print(
        "axes: b prompt, p position, s source position, d d_model, n query head, k key/value head, h d_head, m d_mlp, "
        "e expert, o output vocabulary, 1 an axis of length one"
    )


@dataclasses.dataclass(frozen=True)
class Command:
    """A subcommand: what it does in a few words, the function that does it, and whether it writes files."""

    help: str
    run: Callable[[argparse.Namespace], None]
    writes: bool = False


COMMANDS = {
    "demo": Command("find the heads of a small model that know who gets the bag", run_demo, writes=True),
    "hooks": Command("list every hook point of a model", list_hooks),
}


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="jaxlens", description="TransformerLens's vocabulary on JAX.")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    subparsers = parser.add_subparsers(metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.help, description=command.run.__doc__)
        subparser.add_argument(
            "--model", default=DEFAULT_MODEL, metavar="NAME_OR_PATH",
            help="a Hugging Face id, a local folder, or a .gguf file (default: %(default)s)",
        )  # fmt: skip
        if command.writes:
            subparser.add_argument(
                "--out", type=Path, default=Path("out"), metavar="FOLDER", help="where files go (default: %(default)s)"
            )
        subparser.set_defaults(run=command.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand: 0 if it succeeded, 1 with one line on stderr if not, 130 if it was interrupted."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        parser.print_help()
        return 0
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no "→" gets a "?" and no traceback
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, as in `jaxlens hooks | head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except (ValueError, ActivationNotFound, OSError) as error:  # the package's own errors are ValueErrors but for one
        if arguments.traceback:
            raise
        print(f"jaxlens: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
