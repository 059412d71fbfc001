from jaxlens.transformer_lens.utilities import *
