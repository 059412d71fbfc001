"""`jaxlens harvest`: the activations of the tokens of a file, in a folder."""

import argparse
import json
from pathlib import Path

from jaxlens import batch
from jaxlens.batch.per_token import SKIPS
from jaxlens.cli.commands.command import Command, load_model, positive, print_progress

DTYPES = ("float32", "bfloat16", "float16")


def harvest(arguments: argparse.Namespace) -> int:
    """Runs the model over DATA and stores the activations of its tokens in FOLDER, one row per token.

    DATA is a .txt file (a document per line), or a .jsonl or .parquet file. The same command continues a harvest that
    was interrupted. With --verify, compares the files in FOLDER with their checksums instead.
    """
    if arguments.verify is not None:
        return verify(arguments)
    missing = [name for name in ("data", "folder", "names") if not getattr(arguments, name)]
    if missing:
        raise ValueError(f"jaxlens harvest needs DATA, FOLDER and --names; there is no {', no '.join(missing)}")
    model = load_model(arguments)
    print_progress("harvesting")
    stored = batch.harvest(
        model, arguments.data, arguments.names, arguments.folder, dtype=arguments.dtype, skip=arguments.skip,
        column=arguments.column, max_length=arguments.max_length, batch_tokens=arguments.batch_tokens,
        shard_tokens=arguments.shard_tokens,
    )  # fmt: skip
    size = sum(path.stat().st_size for path in stored.folder.glob("shard-*"))
    if arguments.json:
        print(json.dumps({"folder": str(stored.folder), "rows": len(stored), "bytes": size, **_described(stored)}))
    else:
        print(f"{stored!r}\n{size:,} bytes in {stored.folder}")
    return 0


def _described(stored: batch.Harvest) -> dict:
    return {"shards": len(stored.shards), "complete": stored.is_complete, "shapes": stored.index["shapes"]}


def verify(arguments: argparse.Namespace) -> int:
    """Prints what is wrong with a harvest. Returns the exit status: 1 if something is."""
    stored = batch.Harvest(arguments.verify)
    problems = stored.verify()
    if arguments.json:
        print(json.dumps({"folder": str(stored.folder), "rows": len(stored), "problems": problems}))
    else:
        print("\n".join(problems) or f"{stored!r}: every value is as it was written")
    return int(bool(problems))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", type=Path, metavar="DATA", help="a .txt, .jsonl or .parquet file")
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="the folder of the harvest")
    parser.add_argument(
        "--names", type=lambda text: text.split(","), metavar="NAME,NAME",
        help='hook points, such as "blocks.12.hook_resid_post" or "blocks.*.attn.hook_z"',
    )  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, help="the dtype of the activations (default: the model's)")
    parser.add_argument("--skip", choices=SKIPS, default="bos and padding", help="default: %(default)s")
    parser.add_argument("--column", metavar="NAME", help="the column of the documents (default: text or tokens)")
    parser.add_argument("--max-length", type=positive, metavar="N", help="split longer documents (default: n_ctx)")
    parser.add_argument(
        "--batch-tokens", type=positive, default=2048, metavar="N", help="tokens of a batch (default: %(default)s)"
    )
    parser.add_argument(
        "--shard-tokens", type=positive, default=1 << 17, metavar="N", help="rows of a file (default: %(default)s)"
    )
    parser.add_argument("--verify", type=Path, metavar="FOLDER", help="compare the files with their checksums")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


COMMAND = Command(
    "store the activations of a data set", harvest, harvest.__doc__,
    "jaxlens harvest corpus.txt activations --names blocks.12.hook_resid_post --dtype bfloat16", add_arguments,
)  # fmt: skip
