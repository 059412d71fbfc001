from jaxlens.transformer_lens.head_detector import *
