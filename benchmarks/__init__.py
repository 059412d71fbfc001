"""Benchmarks: `python -m benchmarks.hooks`, and the other modules here.

Times are compared with a baseline of the same process, and warm-up and compilation are measured separately. Benchmarks
are not tests: they print which targets hold on this machine, and never fail.
"""
