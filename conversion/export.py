"""`python conversion/export.py --help`: back to what Hugging Face's transformers reads."""

from script import run

run("export")
