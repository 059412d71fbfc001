from jaxlens.transformer_lens.tools import *
