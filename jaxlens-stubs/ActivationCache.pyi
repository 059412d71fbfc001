from jaxlens.model.cache.activation_cache import *
