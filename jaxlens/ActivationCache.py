"""TransformerLens's module of this name: `jaxlens.analysis.activation_cache`."""

from jaxlens.analysis.activation_cache import ActivationCache as ActivationCache
