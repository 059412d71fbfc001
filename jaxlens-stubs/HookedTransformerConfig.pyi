from jaxlens.transformer_lens.config import *
