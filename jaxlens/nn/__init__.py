"""The parts of a transformer, one per file: weights and the arithmetic they do."""
