from jaxlens.transformer_lens.cache import *
