"""`jaxlens hooks`: every hook point of a model."""

import argparse

from jaxlens.checkpoints import open_checkpoint
from jaxlens.cli.commands.command import Command
from jaxlens.hooks.names import split_name
from jaxlens.hooks.table import Site, sites


def list_hooks(arguments: argparse.Namespace) -> None:
    """Prints the hook points of a model. Reads its config, but no weights."""
    cfg = open_checkpoint(arguments.model, adapter=arguments.adapter).cfg
    layers_of: dict[Site, list[int | None]] = {}
    for name, site in sites(cfg).items():
        layers_of.setdefault(site, []).append(split_name(name)[1])
    print(f"{'name':32} {'axes':9} meaning")
    for site, layers in layers_of.items():
        name = site.name if layers == [None] else f"blocks.{{l}}.{site.name}"
        in_all = layers == [None] or len(layers) == cfg.n_layers
        note = "" if in_all else f" (layers {', '.join(map(str, layers))})"
        print(f"{name:32} {site.axes:9} {site.meaning}{note}{' (on request)' if site.on_request else ''}")
    print(
        "axes: b batch, p position, s source position, d d_model, n query head, k key/value head, h d_head, m d_mlp, "
        "e expert, o output vocabulary, 1 an axis of length one"
    )


COMMAND = Command("list every hook point of a model", list_hooks, list_hooks.__doc__, "jaxlens hooks --model gpt2")
