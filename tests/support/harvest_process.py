"""A process of a distributed run in which several write one harvest: `harvest_process.py ADDRESS N NUMBER FOLDER`."""

import sys

import jax

from support.harvesting import harvest_all

address, n_processes, number, folder = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, int(n_processes), int(number))
rows = harvest_all(folder)
print(len(rows), rows.is_complete)
