from jaxlens.transformer_lens.utils import *
