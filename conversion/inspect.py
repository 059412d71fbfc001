"""`python conversion/inspect.py --help`: shows the contents of a checkpoint without loading it."""

from script import run

run("inspect")
