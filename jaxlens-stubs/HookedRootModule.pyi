from jaxlens.transformer_lens.hook_points import *
