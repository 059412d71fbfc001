from jaxlens.text.tokenizer import *
