"""`python conversion/verify.py --help`: a checkpoint against transformers; its row goes to RESULTS.md."""

from script import HERE, run

run("verify", "--results", str(HERE / "RESULTS.md"))
