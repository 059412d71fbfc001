"""Reads GGUF files as Hugging Face checkpoints."""
