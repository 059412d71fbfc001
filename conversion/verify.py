"""`python conversion/verify.py --help`: compares a checkpoint with transformers and appends a row to RESULTS.md."""

from script import HERE, run

run("verify", "--results", str(HERE / "RESULTS.md"))
