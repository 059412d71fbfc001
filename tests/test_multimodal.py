"""Checkpoints of multimodal models: text has the logits that transformers' whole model computes."""

import json
import re

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from support.tiny import random_tokens, write_checkpoint
from support.wrappers import CASES, logits_of, write_whole

from jaxlens import CheckpointError, HookedTransformer
from jaxlens.checkpoints import export, load
from jaxlens.checkpoints.converter import convert, convert_back
from jaxlens.checkpoints.inspector import look
from jaxlens.checkpoints.open import open_checkpoint, read_config
from jaxlens.checkpoints.rules.wrappers import WRAPPERS
from jaxlens.cli.commands import inspect, verify
from jaxlens.model.verify import verify as compare

TOLERANCE = 1e-5
TOKENS = random_tokens(0, 24)


def assert_equal_logits(folder, expected):
    loaded = load(folder)
    model = HookedTransformer(loaded.cfg, params=loaded.params, source=loaded.source)
    assert np.abs(np.asarray(model(TOKENS)) - expected).max() <= TOLERANCE * np.abs(expected).max()
    return loaded


def edit_config(folder, edit):
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(edit(fields) or fields))


def edit_tensors(folder, rename, **more):
    stored = load_file(folder / "model.safetensors")
    save_file({**{rename(name): value for name, value in stored.items()}, **more}, folder / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A function that returns a new copy of the checkpoint of a case, and transformers' logits."""
    written = {}

    def get(case, folder):
        if case not in written:
            original, theirs = write_whole(tmp_path_factory.mktemp("whole") / "theirs", case)
            written[case] = original, logits_of(theirs, TOKENS)
        original, expected = written[case]
        folder.mkdir()
        for file in original.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder, expected

    return get


@pytest.mark.parametrize("case", CASES)
def test_logits_and_export(tmp_path, case):
    """The export is a checkpoint of the language model alone, with the same logits in transformers."""
    folder, theirs = write_whole(tmp_path / "theirs", case)
    expected = logits_of(theirs, TOKENS)
    loaded = assert_equal_logits(folder, expected)
    ours = export(tmp_path / "ours", loaded.cfg, loaded.params, loaded.source)
    alone = transformers.AutoModelForCausalLM.from_pretrained(ours, attn_implementation="eager", dtype=torch.float32)
    assert np.abs(logits_of(alone.eval(), TOKENS) - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert loaded.source["architectures"] == [type(alone).__name__]


ALONE = {  # how the models that transformers cannot write here store their language model
    "perception_lm": ("llama", "text_config", "model.language_model.", "lm_head."),
    "internvl_chat": ("qwen2", "llm_config", "language_model.model.", "language_model.lm_head."),
}


def test_every_multimodal_model_has_a_case():
    assert set(WRAPPERS) == {case.partition(" ")[0] for case in CASES} | set(ALONE)


@pytest.mark.parametrize("model_type", ALONE)
def test_a_language_model_in_another_layout(tmp_path, model_type):
    kind, field, base, head = ALONE[model_type]
    folder = write_checkpoint(tmp_path, kind)
    alone = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    edit_tensors(folder, lambda name: re.sub("^lm_head.", head, re.sub("^model.", base, name)))
    edit_config(folder, lambda text: {"model_type": model_type, field: text, "vision_config": {}})
    assert_equal_logits(folder, logits_of(alone, TOKENS))


# ---- layouts of tensors ---------------------------------------------------------------------------------------------

IN_MODEL = {
    r"^language_model\.model\.": "model.language_model.", r"^language_model\.lm_head": "lm_head",
    r"^(vision_tower|multi_modal_projector|image_newline|audio_tower)": r"model.\1",
}  # fmt: skip
LAYOUTS = {
    "llava_next": IN_MODEL,
    "gemma3": IN_MODEL,
    "qwen2_audio": IN_MODEL,
    "qwen2_vl": {"^model": "model.language_model", "^visual": "model.visual"},
    "idefics3": {r"^model\.": "model.model."},
    "cohere2_vision": {r"^model\.language_model": "language_model.model", r"^model\.": ""},
    "internvl": {r"^(vision_tower|language_model)": r"\1"},
}


@pytest.mark.parametrize("case", ["llava_next", "gemma3", "qwen2_audio", "qwen2_vl", "cohere2_vision"])
def test_layouts_of_other_versions_of_transformers(tmp_path, whole, case):
    folder, expected = whole(case, tmp_path / "copy")

    def rename(name):
        for pattern, replacement in LAYOUTS[case].items():
            name, found = re.subn(pattern, replacement, name)
            if found:
                break
        return name

    before = set(load_file(folder / "model.safetensors"))
    edit_tensors(folder, rename)
    assert len(before - set(load_file(folder / "model.safetensors"))) == len(before) - 1 * (case == "qwen2_vl")
    assert_equal_logits(folder, expected)
