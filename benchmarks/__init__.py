"""What jaxlens costs, measured: `python -m benchmarks.hooks` and `python -m benchmarks.memory`.

Every number is a ratio to something timed in the same run, beside its own warm-up and compilations. A benchmark is no
test: it prints which targets hold on this machine and never fails.
"""
