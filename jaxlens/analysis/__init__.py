"""What reads a model's activations rather than being a model."""
