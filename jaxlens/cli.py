"""The command line: `jaxlens COMMAND …`. A subcommand is a file in `commands` and a row in `COMMANDS`."""

import argparse
import os
import sys

from jaxlens.commands import attribute, convert, demo, export, families, heads, hooks, inspect, lens, patch, verify
from jaxlens.commands.command import DEFAULT_MODEL
from jaxlens.errors import ActivationNotFound

COMMANDS = {
    "demo": demo.COMMAND,
    "lens": lens.COMMAND,
    "patch": patch.COMMAND,
    "attribute": attribute.COMMAND,
    "heads": heads.COMMAND,
    "hooks": hooks.COMMAND,
    "inspect": inspect.COMMAND,
    "convert": convert.COMMAND,
    "export": export.COMMAND,
    "verify": verify.COMMAND,
    "families": families.COMMAND,
}


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="jaxlens", description="TransformerLens's vocabulary on JAX.")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    subparsers = parser.add_subparsers(metavar="COMMAND", dest="command")
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=command.help, description=command.description, epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        if command.takes_model:
            subparser.add_argument(
                "--model", default=DEFAULT_MODEL, metavar="NAME_OR_PATH",
                help="a Hugging Face id, a local folder, or a .gguf file (default: %(default)s)",
            )  # fmt: skip
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand: 0 if it succeeded, 1 if not (for an error, with one line on stderr), 130 if interrupted."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 0
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no "→" gets a "?" and no traceback
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status or 0
    except BrokenPipeError:  # whoever reads, as in `jaxlens hooks | head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except (ValueError, ActivationNotFound, OSError, ImportError) as error:  # the package's own are ValueErrors but one
        if arguments.traceback:
            raise
        print(f"jaxlens: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
