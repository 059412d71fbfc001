"""The parts of a transformer, one per file: weights and the arithmetic they do, nothing of checkpoints or of hooks' owners."""
