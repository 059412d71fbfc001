"""Checkpoints without the head of a language model: base models, and classifiers of sequences and of tokens."""

import json

import numpy as np
import pytest
import torch
import transformers
from families import SIZES
from safetensors.numpy import load_file, save_file
from support.tiny import random_tokens, randomise

from jaxlens import CheckpointError, HookedTransformer, load
