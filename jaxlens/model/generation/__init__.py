"""Text generation: decoding with a KV cache, sampling, and hooks that act at every step."""
