"""Generation of every family: with its cache, in batches with padding and in chunks, it equals whole runs."""

import numpy as np
import pytest
import torch
import transformers
from families import CASES
from support.maps import forget_programs
from support.tiny import random_tokens, write_checkpoint
from test_models import close

from jaxlens import HookedTransformer
from jaxlens.checkpoints import load
from jaxlens.model.generation.decode import depends_on_length

COMMON = {"bloom", "deepseek_v3", "gemma3_text", "gpt2", "gpt_oss", "mistral", "phi3", "qwen3_moe"}
"""The families that `make test` runs. `make test-all` runs all."""

N_NEW = 24
GREEDY = {"do_sample": False, "stop_at_eos": False, "verbose": False}


def pytest_cases(all_cases: bool):
    for kind, cases in CASES.items():
        for i, fields in enumerate(cases if all_cases else cases[:1]):
            slow = [] if kind in COMMON and i == 0 else [pytest.mark.slow]
            yield pytest.param(kind, fields, id=f"{kind}-{i}", marks=slow)


def read(folder, fields) -> HookedTransformer:
    loaded = load(folder, n_ctx=64 if fields.get("max_position_embeddings", 64) < 40 else None)
    return HookedTransformer(loaded.cfg, params=loaded.params, source=loaded.source)


def whole_runs(run, text) -> np.ndarray:
    for _ in range(N_NEW):
        text = np.concatenate([text, np.asarray(run(text))[:, -1:].argmax(-1)], axis=1)
    return text


@pytest.fixture(autouse=True)
def programs_of_one_case():
    yield
    forget_programs()


@pytest.mark.parametrize(("model_type", "fields"), pytest_cases(all_cases=True))
def test_generation_equals_whole_runs(tmp_path, model_type, fields):
    of = read(write_checkpoint(tmp_path, model_type, **fields), fields)
    text, lengths = random_tokens(0, 13, batch=3), (13, 9, 4)
    alone = [whole_runs(of, row[None, :n])[0, n:] for row, n in zip(text, lengths, strict=True)]
    on_right = np.arange(13) < np.array(lengths)[:, None]
    on_left = on_right[:, ::-1]
    moved = np.zeros_like(text)
    moved[on_left] = text[on_right]
    one_row = text[:1], on_right[:1], {}
    for given, mask, options in (one_row, (text, on_right, {}), (moved, on_left, {"prefill_chunk": 5})):
        n_rows = len(given)
        generated = of.generate(given, N_NEW, attention_mask=mask, output_logits=True, **options, **GREEDY)
        assert np.array_equal(np.asarray(generated.sequences)[:, 13:], np.stack(alone)[:n_rows])
        for row, (given_row, n, new) in enumerate(list(zip(text, lengths, alone, strict=True))[:n_rows]):
            whole = of(np.concatenate([given_row[:n], new[:-1]])[None])[0, n - 1 :]
            if not depends_on_length(of.cfg):  # else the frequencies of earlier tokens depend on the length
                close(generated.logits[:, row], whole)


@pytest.mark.parametrize(("model_type", "fields"), pytest_cases(all_cases=False))
def test_greedy_tokens_of_transformers(tmp_path, model_type, fields):
    folder = write_checkpoint(tmp_path, model_type, **fields)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    text = random_tokens(1, 13, batch=2)
    settings = {"max_new_tokens": N_NEW, "min_new_tokens": N_NEW, "do_sample": False, "use_cache": False}
    with torch.no_grad():
        expected = theirs.eval().generate(torch.tensor(text), pad_token_id=0, eos_token_id=None, **settings)
    assert np.array_equal(read(folder, fields).generate(text, N_NEW, **GREEDY), expected.numpy())
