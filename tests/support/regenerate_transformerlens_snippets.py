"""Runs the snippets in TransformerLens and stores what they give, for tests/test_transformerlens_snippets.py.

pip install transformer-lens==3.5.1 pandas && PYTHONPATH=tests python -m support.regenerate_transformerlens_snippets
"""

import copy
import functools
import json
import logging
import os
import sys
import warnings

os.environ["TQDM_DISABLE"] = "1"

import einops
import numpy as np
import torch
import transformer_lens
import transformers
from transformer_lens import HookedTransformer, HookedTransformerConfig

from support.snippet_worlds import (
    MODELS,
    REFERENCE,
    SPECIAL,
    digest,
    names_for,
    run,
    snippets,
    state_dict,
    word_tokenizer,
)


def make_model(name: str, state: str) -> HookedTransformer:
    model = HookedTransformer(HookedTransformerConfig(**MODELS[name]))
    weights = {key: torch.tensor(value) for key, value in state_dict(name).items()}
    names = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
    passes = dict.fromkeys(names, state == "processed")
    model.load_and_process_state_dict(weights, **passes)
    model.set_tokenizer(
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=word_tokenizer(), name_or_path="", add_bos_token=True, **SPECIAL
        )
    )
    return model


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    assert transformer_lens.__file__
    libraries = {"np": np, "torch": torch, "einops": einops, "partial": functools.partial}
    index, numbers, failed = {}, [], []
    models = {(name, state): make_model(name, state) for name in MODELS for state in ("raw", "processed")}
    only = sys.argv[1:]
    for snippet in snippets():
        if snippet.definition or (only and not any(word in snippet.title for word in only)):
            continue
        for name, state in snippet.where:
            torch.manual_seed(0)
            given = names_for(libraries, copy.deepcopy(models[name, state]), torch.tensor)
            try:
                value, arrays = digest(run(snippet.before, given))
            except Exception as error:
                failed.append((f"{snippet.theme}: {snippet.title} [{name} {state}]", error))
                continue
            index[f"{snippet.theme}: {snippet.title} [{name} {state}]"] = value
            numbers += arrays
    for title, error in failed:
        print(f"FAILED {title}: {type(error).__name__}: {str(error)[:300]}")
    if only:
        print(json.dumps(index, indent=1))
        return
    np.savez_compressed(
        REFERENCE, index=np.frombuffer(json.dumps(index).encode(), np.uint8),
        numbers=np.concatenate(numbers).astype(np.float32), lengths=np.array([len(one) for one in numbers], np.int32),
    )  # fmt: skip
    print(f"{len(index)} values of {len(snippets())} snippets, {REFERENCE.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
