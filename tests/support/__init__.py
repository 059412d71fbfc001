"""What several test files use: models, checkpoints, cases of mistakes, and readers of compiled code."""
