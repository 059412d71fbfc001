"""`jaxlens hooks`: every hook point of a model."""

import argparse

from jaxlens.commands.command import Command
from jaxlens.convert import open_checkpoint
from jaxlens.hook_table import Site, sites, split_name


def list_hooks(arguments: argparse.Namespace) -> None:
    """Prints every hook point of a model once, reading its config and none of its weights."""
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


COMMAND = Command("list every hook point of a model", list_hooks, list_hooks.__doc__, "jaxlens hooks --model gpt2")
