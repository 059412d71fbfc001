"""`python conversion/export.py --help`: writes a checkpoint for Hugging Face's transformers."""

from script import run

run("export")
