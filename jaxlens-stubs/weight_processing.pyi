from jaxlens.transformer_lens.weight_processing import *
