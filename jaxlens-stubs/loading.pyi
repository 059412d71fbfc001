from jaxlens.transformer_lens.loading_from_pretrained import *
