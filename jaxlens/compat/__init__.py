"""What lets code written for TransformerLens 3 run with its imports changed: its configs, modules and model methods."""
