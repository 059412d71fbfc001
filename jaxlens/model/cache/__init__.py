"""The activations of one run, and the residual stream as the sum of what was written to it."""
