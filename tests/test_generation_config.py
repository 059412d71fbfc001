"""The tokens that end a text: those of a checkpoint's generation_config.json, as in transformers."""

import json

import numpy as np
import pytest
import torch
import transformers
from support.models import CONFIGS
from support.tiny import random_tokens, write_checkpoint
from test_text import word_tokenizer

from jaxlens import CheckpointError, HookedTransformer, Tokenizer
from jaxlens.checkpoints import export, load
from jaxlens.checkpoints.converter import convert, convert_back, save
from jaxlens.cli import main
from jaxlens.model.generation.options import eos_tokens

N_NEW = 20
GREEDY = {"do_sample": False, "verbose": False}
TEXT = random_tokens(1, 11, batch=3)
MASK = np.arange(11) >= np.array([[0], [4], [9]])


def set_ends(folder, ends, **fields):
    """Writes `eos_token_id` and other fields to the generation_config.json of a folder."""
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": ends, **fields}))


def of_transformers(folder, **options) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        text, mask = torch.tensor(TEXT), torch.tensor(MASK)
        return model.eval().generate(text, attention_mask=mask, max_new_tokens=N_NEW, **options).numpy()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A function from a model_type to a folder, whose generation_config.json has two ends that the model chooses."""
    made = {}

    def folder_of(model_type: str):
        if model_type not in made:
            folder = write_checkpoint(tmp_path_factory.mktemp("models") / model_type, model_type)
            free = of_transformers(folder, do_sample=False, eos_token_id=None, pad_token_id=0)[:, 11:]
            ends = [int(free[1, 7]), int(free[0, 3]), int(free[2, 15])]
            set_ends(folder, ends, pad_token_id=ends[0], do_sample=True, temperature=0.3)
            made[model_type] = folder, ends
        return made[model_type]

    return folder_of


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "bloom", "qwen3_moe"])
def test_a_text_ends_where_it_does_in_transformers(checkpoint, model_type):
    folder, ends = checkpoint(model_type)
    expected = of_transformers(folder, do_sample=False)
    assert expected.shape[1] < 11 + N_NEW
    for model in (HookedTransformer.from_pretrained(folder), HookedTransformer.from_pretrained_no_processing(folder)):
        assert eos_tokens(model) == ends
        assert np.array_equal(model.generate(TEXT, N_NEW, attention_mask=MASK, **GREEDY), expected)


def test_arguments_and_other_tokenizers_do_not_change_the_file(checkpoint):
    folder, ends = checkpoint("llama")
    model = HookedTransformer.from_pretrained(folder, tokenizer=Tokenizer(word_tokenizer(), eos_token="<pad>"))
    options = {"attention_mask": MASK, **GREEDY}
    assert np.array_equal(model.generate(TEXT, N_NEW, **options), of_transformers(folder, do_sample=False))
    free = of_transformers(folder, do_sample=False, eos_token_id=None)
    assert np.array_equal(model.generate(TEXT, N_NEW, stop_at_eos=False, **options), free)
    one = of_transformers(folder, do_sample=False, eos_token_id=ends[1], pad_token_id=ends[1])
    assert np.array_equal(model.generate(TEXT, N_NEW, eos_token_id=ends[1], **options), one)


@pytest.mark.parametrize(("ends", "expected"), [(7, [7]), ([7, 9], [7, 9]), (None, [2]), ("no file", [2])])
def test_without_ends_in_the_file_a_text_ends_at_eos_of_the_tokenizer(tmp_path, ends, expected):
    folder = write_checkpoint(tmp_path, "llama")
    if ends == "no file":
        (folder / "generation_config.json").unlink()
    else:
        set_ends(folder, ends)
    tokenizer = Tokenizer(word_tokenizer(), eos_token=word_tokenizer().id_to_token(2))
    assert eos_tokens(HookedTransformer.from_pretrained(folder, tokenizer=tokenizer)) == expected


def test_exports_keep_the_file(checkpoint, tmp_path):
    folder, ends = checkpoint("llama")
    file = json.loads((folder / "generation_config.json").read_text())
    loaded = load(folder)
    assert loaded.cfg.generation_config == file
    paths = {name: tmp_path / name for name in ("exported", "native", "converted", "back")}
    export(paths["exported"], loaded.cfg, loaded.params, loaded.source)
    save(paths["native"], loaded.cfg, loaded.params, None, loaded.source)
    convert(folder, paths["converted"], process=True)
    convert_back(paths["native"], paths["back"])
    for path in paths.values():
        assert json.loads((path / "generation_config.json").read_text()) == file
        assert eos_tokens(HookedTransformer.from_pretrained(path)) == ends
    without = HookedTransformer(CONFIGS["llama"])
    assert not (save(tmp_path / "without", without.cfg, without.params) / "generation_config.json").exists()


@pytest.mark.parametrize("ends", ["</s>", [1, "2"], 2.0, True, -1])
def test_other_values_are_refused(tmp_path, ends):
    folder = write_checkpoint(tmp_path, "llama")
    set_ends(folder, ends)
    with pytest.raises(CheckpointError, match=r"eos_token_id is .*; expected a token, a list of tokens or null"):
        load(folder)


def test_the_command_line_ends_there_too(tmp_path, capsys):
    words = Tokenizer(word_tokenizer(), bos_token="<s>", eos_token="<pad>")
    model = HookedTransformer(CONFIGS["gpt2"].replace(d_vocab=len(words), d_vocab_out=None), words, seed=3)
    free = model.generate("the cat", 6, stop_at_eos=False, return_type="tokens", **GREEDY)[0, -6:].tolist()
    cfg = model.cfg.replace(generation_config={"eos_token_id": [free[-1], len(words) - 1]})
    folder = save(tmp_path / "model", cfg, model.params, words)
    command = ["generate", "the cat", "--greedy", "--max-new-tokens", "6", "--model", str(folder)]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == [free[: free.index(free[-1])]]
