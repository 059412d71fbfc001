"""The command line: `jaxlens COMMAND …`. A subcommand is a file in `commands` and an entry of `COMMANDS`."""

import argparse
import importlib.metadata
import os
import sys
from inspect import cleandoc

from jaxlens._jax import use_compilation_cache
from jaxlens.cli.commands import (
    attribute,
    convert,
    demo,
    export,
    families,
    generate,
    harvest,
    heads,
    hooks,
    inspect,
    lens,
    patch,
    score,
    verify,
)
from jaxlens.cli.commands.command import DEFAULT_MODEL, add_adapter
from jaxlens.errors import ActivationNotFound

COMMANDS = {
    "demo": demo.COMMAND, "lens": lens.COMMAND, "patch": patch.COMMAND, "attribute": attribute.COMMAND,
    "heads": heads.COMMAND, "generate": generate.COMMAND, "score": score.COMMAND, "harvest": harvest.COMMAND,
    "hooks": hooks.COMMAND, "inspect": inspect.COMMAND, "convert": convert.COMMAND, "export": export.COMMAND,
    "verify": verify.COMMAND, "families": families.COMMAND,
}  # fmt: skip


class Version(argparse.Action):
    """Prints the version, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"jaxlens {importlib.metadata.version('hooked-jaxlens')}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="jaxlens", description="Interpretability of transformers on JAX.")
    parser.add_argument("--traceback", action="store_true", help="print the traceback of an error")
    parser.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    subparsers = parser.add_subparsers(metavar="COMMAND", dest="command")
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=command.help, description=cleandoc(command.description),
            epilog=f"example:\n  {command.example}", formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        if command.takes_model:
            subparser.add_argument(
                "--model", default=DEFAULT_MODEL, metavar="NAME_OR_PATH",
                help="a Hugging Face id, a local folder, or a .gguf file (default: %(default)s)",
            )  # fmt: skip
            add_adapter(subparser)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a subcommand. Returns the exit status: 0 for success, 1 for failure, 130 for an interrupt.

    Errors are printed on stderr, on a single line unless --traceback is set.
    """
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 0
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # print "?" for characters that the terminal cannot encode
    if COMMANDS[arguments.command].takes_model:
        use_compilation_cache()
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status or 0
    except BrokenPipeError:  # `jaxlens hooks | head` closes the pipe; without this, the flush at exit fails
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except (ValueError, ActivationNotFound, OSError, ImportError) as error:
        if arguments.traceback:
            raise
        print(f"jaxlens: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0
