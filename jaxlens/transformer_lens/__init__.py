"""Compatibility with TransformerLens: its module paths, its config fields, and its helper functions."""
