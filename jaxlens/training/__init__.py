"""The training loop, datasets and evaluations."""
