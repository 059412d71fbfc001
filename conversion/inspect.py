"""`python conversion/inspect.py --help`: what a checkpoint holds, without its weights."""

from script import run

run("inspect")
