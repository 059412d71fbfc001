"""The model that users hold, how it runs, and the cache of a run."""
