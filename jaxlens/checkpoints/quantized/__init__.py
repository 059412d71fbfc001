"""The methods of quantization that are read, and the tensors of a quantized checkpoint with their weights as floats."""
