from jaxlens.transformer_lens.hooked_transformer import *
