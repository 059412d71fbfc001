"""Weights stored in fewer bits: each method of quantization that is read, and the tensors with their weights as floats."""
