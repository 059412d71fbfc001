"""`python conversion/convert.py --help`: any checkpoint into jaxlens's own folder."""

from script import run

run("convert")
