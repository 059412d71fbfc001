"""`python conversion/convert.py --help`: writes a checkpoint of any format in jaxlens's native format."""

from script import run

run("convert")
