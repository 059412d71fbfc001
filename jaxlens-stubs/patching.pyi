from jaxlens.transformer_lens.patching import *
