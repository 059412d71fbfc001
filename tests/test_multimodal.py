"""Checkpoints of multimodal models: text has the logits that transformers' whole model computes."""

import json
import math
import re

import numpy as np
import peft
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
from jaxlens.checkpoints.open import read_config
from jaxlens.checkpoints.rules.wrappers import WRAPPERS
from jaxlens.cli.commands.inspect import report
from jaxlens.model.verify import verify
from jaxlens.nn.parameters import parameter_shapes

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


def test_the_head_of_a_multimodal_model_has_no_bias(tmp_path):
    """Also, the names of GPT-J's tensors in transformers 5 are those of no other version."""
    folder, theirs = write_whole(tmp_path / "theirs", "llava", text_config={**CASES["blip-2 gptj"]["text_config"]})
    loaded = assert_equal_logits(folder, logits_of(theirs, TOKENS))
    with pytest.raises(CheckpointError, match="a gptj checkpoint cannot express this model: biases is"):
        export(tmp_path / "ours", loaded.cfg, loaded.params, loaded.source)


@pytest.mark.parametrize("case", ["llava", "idefics3", "qwen2_5_vl", "gemma3"])
def test_a_base_model(tmp_path, case):
    """Saved without the head of its language model. Where embeddings are tied, logits are known nevertheless."""
    folder, theirs = tmp_path / "theirs", write_whole(tmp_path / "whole", case)[1]
    theirs.model.save_pretrained(folder)
    with torch.no_grad():
        expected = theirs.model(input_ids=torch.tensor(TOKENS), use_cache=False).last_hidden_state.numpy()
    for source in (folder, tmp_path / "ours"):
        model = HookedTransformer.from_pretrained_no_processing(str(source))
        states = model.run_with_cache(TOKENS, return_type=None)[1]["unembed.hook_in"]
        assert np.abs(np.asarray(states) - expected).max() <= TOLERANCE * np.abs(expected).max()
        assert model.cfg.output_head == ("next_token" if case == "gemma3" else None)
        assert verify(source, length=9).passed
        if source == folder:
            export(tmp_path / "ours", model.cfg, model.params, model.source)
    auto = transformers.AutoModelForCausalLM if case == "gemma3" else transformers.AutoModel
    info = auto.from_pretrained(tmp_path / "ours", output_loading_info=True)[1]
    assert not any(info.values()), info


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

LAYOUTS = {  # the beginnings of names, and those that other versions of transformers wrote
    "llava_next": {
        "language_model.model.": "model.language_model.", "language_model.lm_head": "lm_head",
        "vision_tower": "model.vision_tower", "multi_modal": "model.multi_modal",
        "image_newline": "model.image_newline",
    },
    "qwen2_vl": {"model.": "model.language_model.", "visual.": "model.visual.", "lm_head": "lm_head"},
    "cohere2_vision": {"model.language_model.": "language_model.model.", "model.": ""},
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts_of_other_versions_of_transformers(tmp_path, whole, case):
    folder, expected = whole(case, tmp_path / "copy")

    def rename(name):
        before = next(before for before in LAYOUTS[case] if name.startswith(before))
        return LAYOUTS[case][before] + name.removeprefix(before)

    edit_tensors(folder, rename)
    assert_equal_logits(folder, expected)


def test_the_parts_that_speak_are_not_read(tmp_path, whole):
    folder, expected = whole("qwen2_5_omni", tmp_path / "copy")
    edit_tensors(folder, str, **{"talker.model.norm.weight": TOKENS, "token2wav.code2wav_dit_model.x": TOKENS})
    edit_config(folder, lambda fields: {**fields, "enable_audio_output": True, "enable_talker": True})
    assert_equal_logits(folder, expected)
    assert look(folder).other_parts["speech"] == 2


def test_a_sharded_checkpoint_of_which_other_parts_are_never_read(tmp_path, monkeypatch):
    from jaxlens.checkpoints.folder_reader import TensorFolder

    folder, theirs = write_whole(tmp_path / "theirs", "llava", shard="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    reads, read = [], TensorFolder.read
    monkeypatch.setattr(TensorFolder, "read", lambda self, name: reads.append(name) or read(self, name))
    assert_equal_logits(folder, logits_of(theirs, TOKENS))
    assert len(reads) == len(set(reads)) and all(name.startswith("language_model.") for name in reads)


def test_published_experts(tmp_path, whole):
    """As published, the axes of Qwen 3 VL's experts are transposed."""
    folder, expected = whole("qwen3_vl_moe", tmp_path / "copy")
    stored = load_file(folder / "model.safetensors")
    experts = {name: value for name, value in stored.items() if ".experts." in name}
    edit_tensors(folder, str, **{name: np.ascontiguousarray(value.swapaxes(1, 2)) for name, value in experts.items()})
    assert_equal_logits(folder, expected)


@pytest.mark.parametrize("stated", [{}, {"tie_word_embeddings": True}])
def test_a_stored_head_is_used(tmp_path, whole, stated):
    """Mistral 3.1 was published with a head before tie_word_embeddings was true by default."""
    folder, expected = whole("mistral3", tmp_path / "copy")
    edit_config(folder, lambda fields: {**{k: v for k, v in fields.items() if k != "tie_word_embeddings"}, **stated})
    edit_config(folder, lambda fields: fields["text_config"].pop("tie_word_embeddings") and None)
    theirs = transformers.AutoModelForMultimodalLM.from_pretrained(folder, attn_implementation="eager").eval()
    assert np.abs(logits_of(theirs, TOKENS) - expected).max() <= TOLERANCE * np.abs(expected).max()
    loaded = assert_equal_logits(folder, expected)
    assert not loaded.cfg.tie_word_embeddings and load(convert_back(folder, tmp_path / "ours")).cfg == loaded.cfg


@pytest.mark.parametrize("place", ["outer", "inner"])
def test_tied_embeddings(tmp_path, place):
    tied = {"tie_word_embeddings": True}
    text = {**CASES["llava"]["text_config"], **(tied if place == "inner" else {})}
    folder, theirs = write_whole(tmp_path / "theirs", "llava", text_config=text, **(tied if place == "outer" else {}))
    if place == "inner":  # as older versions of transformers wrote it
        edit_config(folder, lambda fields: fields.pop("tie_word_embeddings") and None)
    assert assert_equal_logits(folder, logits_of(theirs, TOKENS)).cfg.tie_word_embeddings
    (folder / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")  # contains the head, too
    assert assert_equal_logits(folder, logits_of(theirs, TOKENS)).cfg.tie_word_embeddings


# ---- config.json ----------------------------------------------------------------------------------------------------

QWEN2_VL_2B = {  # as published in 2024, for transformers 4.41
    "architectures": ["Qwen2VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "vision_start_token_id": 151652, "vision_end_token_id": 151653, "vision_token_id": 151654,
    "image_token_id": 151655, "video_token_id": 151656, "hidden_act": "silu", "hidden_size": 1536,
    "initializer_range": 0.02, "intermediate_size": 8960, "max_position_embeddings": 32768, "max_window_layers": 28,
    "model_type": "qwen2_vl", "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers_version": "4.41.2", "use_cache": True, "use_sliding_window": False,
    "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "spatial_patch_size": 14},
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vocab_size": 151936,
}  # fmt: skip
MISTRAL_3_1 = {
    "architectures": ["Mistral3ForConditionalGeneration"], "image_token_index": 10, "model_type": "mistral3",
    "multimodal_projector_bias": False, "projector_hidden_act": "gelu", "spatial_merge_size": 2,
    "text_config": {
        "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
        "initializer_range": 0.02, "intermediate_size": 32768, "max_position_embeddings": 131072,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000000.0, "sliding_window": None, "use_cache": True,
        "vocab_size": 131072,
    },
    "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "vision_feature_layer": -1,
    "vision_config": {"hidden_size": 1024, "model_type": "pixtral", "rope_theta": 10000.0},
}  # fmt: skip
LLAVA_1_5 = {
    "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 32000,
    "model_type": "llava", "pad_token_id": 32001, "projector_hidden_act": "gelu", "torch_dtype": "float16",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096,
        "model_type": "llama", "rms_norm_eps": 1e-05, "torch_dtype": "float16", "vocab_size": 32064,
    },
    "tie_word_embeddings": False, "transformers_version": "4.36.0.dev0", "vision_feature_layer": -2,
    "vision_config": {"hidden_size": 1024, "model_type": "clip_vision_model"}, "vocab_size": 32064,
    "vision_feature_select_strategy": "default",
}  # fmt: skip
PALIGEMMA = {
    "_name_or_path": "final-hf/paligemma", "bos_token_id": 2, "eos_token_id": 1, "hidden_size": 2048,
    "ignore_index": -100, "image_token_index": 257152, "model_type": "paligemma", "pad_token_id": 0,
    "projection_dim": 2048, "text_config": {
        "hidden_size": 2048, "intermediate_size": 16384, "model_type": "gemma", "num_attention_heads": 8,
        "num_hidden_layers": 18, "num_image_tokens": 256, "num_key_value_heads": 1, "torch_dtype": "float32",
        "vocab_size": 257216,
    },
    "torch_dtype": "float32", "vision_config": {"model_type": "siglip_vision_model", "projection_dim": 2048},
}  # fmt: skip
SMOLVLM = {
    "architectures": ["Idefics3ForConditionalGeneration"], "image_seq_len": 81, "image_token_id": 49153,
    "model_type": "idefics3", "scale_factor": 3, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "text_config": {
        "_flash_attn_2_enabled": True, "_name_or_path": "None", "architectures": ["VLlama3ForCausalLM"], "head_dim": 64,
        "hidden_size": 2048, "intermediate_size": 8192, "is_llama_config": True, "max_position_embeddings": 16384,
        "model_type": "llama", "neftune_noise_alpha": 0.0, "num_attention_heads": 32, "num_hidden_layers": 24,
        "num_key_value_heads": 32, "pad_token_id": 2, "perceiver_config": {"model_type": "vllama3"},
        "pixel_shuffle_factor": 3, "qk_layer_norms": False, "rms_norm_eps": 1e-05, "rope_interleaved": False,
        "rope_theta": 273768.0, "torch_dtype": "bfloat16", "transformers.js_config": {"kv_cache_dtype": {}},
        "use_resampler": False, "vocab_size": 49155,
    },
    "use_cache": True, "vision_config": {"hidden_size": 1152, "model_type": "idefics3"}, "vocab_size": 49155,
}  # fmt: skip
PUBLISHED = {  # config.json, and the parameters of the language model
    "Qwen2-VL-2B": (QWEN2_VL_2B, 1_543_714_304),
    "Mistral-Small-3.1": (MISTRAL_3_1, 23_572_403_200 - 5120 * 131072),  # tied, unless a head is stored
    "llava-1.5-7b": (LLAVA_1_5, 6_738_415_616 + 2 * 64 * 4096),
    "paligemma-3b": (PALIGEMMA, 2_506_172_416 + 1216 * 2048),
    "SmolVLM": (SMOLVLM, 1_711_376_384 + (3 + 49155) * 2048),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_have_their_published_size(name):
    fields, parameters = PUBLISHED[name]
    cfg = read_config(fields)[1]
    assert sum(math.prod(shape.shape) for shape in parameter_shapes(cfg).values()) == parameters


def test_fields_that_are_stored_twice(tmp_path, whole):
    """transformers 4.52 wrote the fields of Qwen's language models inside text_config and beside it."""
    folder, expected = whole("qwen2_vl", tmp_path / "copy")
    fields = json.loads((folder / "config.json").read_text())
    scaling = {"type": "mrope", "mrope_section": [1, 1, 2]}
    older = {**fields["text_config"], "rope_theta": 500.0, "rope_scaling": scaling}
    del older["rope_parameters"]
    for both in ({**older, **fields, "text_config": older}, {**older, **fields, "text_config": None}):
        (folder / "config.json").write_text(json.dumps(both))
        assert_equal_logits(folder, expected)
    with pytest.raises(CheckpointError, match=r"does not read: hidden_size = 60\. The model"):
        read_config({**both, "text_config": older, "hidden_size": 60})


def test_fields_left_out_have_the_defaults_of_the_multimodal_model():
    cfg = read_config({"model_type": "qwen2_vl"})[1]
    assert (cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.rotary[0].base) == (80, 8192, 64, 1e6)
    assert read_config({"model_type": "llava", "text_config": {"hidden_size": 64}})[1].d_model == 64
    assert read_config({"model_type": "qwen3_vl", "text_config": {"hidden_size": 64}})[1].rotary[0].base == 5e5


LLAMA = CASES["llava"]["text_config"]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"text_config": {"model_type": "lfm2"}}, "text_config.model_type is 'lfm2', which is not supported"),
        ({"text_config": {**LLAMA, "new": 1}}, "does not read: text_config.new = 1"),
        ({"new": 1}, "does not read: new = 1"),
        ({"text_config": {**LLAMA, "hidden_act": "step"}}, "text_config.hidden_act is 'step'; expected one of"),
        ({"text_config": 3}, "transformers' LlavaConfig rejects it"),
        ({"model_type": "internvl_chat", "llm_config": [1]}, "llm_config is [1]; expected an object"),
        ({"model_type": "qwen2_5_omni", "thinker_config": [1]}, "thinker_config is [1]; expected an object"),
        ({"model_type": "qwen2_5_omni", "thinker_config": {**CASES["qwen2_vl"], "new": 1}}, "does not read: new = 1"),
        ({"model_type": "internvl_chat"}, "config.json has no llm_config"),
        ({"model_type": "internvl_chat", "llm_config": {}}, "llm_config.model_type is None, which is not supported"),
        ({"model_type": "llava_nex"}, "Did you mean llava_next"),
    ],
)
def test_invalid_configs(fields, text):
    with pytest.raises(CheckpointError, match=re.escape(text)):
        read_config({"model_type": "llava", "text_config": LLAMA, **fields})


def test_errors_name_the_tensors_of_the_file(tmp_path, whole):
    folder, _ = whole("llava", tmp_path / "copy")
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    edit_tensors(folder, lambda theirs: theirs.replace("1.mlp.up_proj", "1.mlp.up"), **{"vision_towers.x": TOKENS})
    with pytest.raises(CheckpointError) as raised:
        load(folder)
    unknown = f"{name.replace('_proj', '')}, vision_towers.x"
    assert f"1 tensor is missing: {name}. 2 tensors are not part of this architecture: {unknown}" in str(raised.value)


# ---- adapters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["llava", "gemma3", "qwen2_vl"])
@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_of_the_whole_model(tmp_path, case, merge):
    """peft names modules as transformers does; a checkpoint may name its tensors otherwise."""
    folder, theirs = write_whole(tmp_path / "theirs", case)
    targets = r".*language_model.*\.(q_proj|down_proj)" if not merge else ["q_proj", "down_proj", "lm_head"]
    model = peft.get_peft_model(theirs, peft.LoraConfig(r=3, lora_alpha=7, target_modules=targets))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "adapter")
    ours = HookedTransformer.from_pretrained_no_processing(folder, adapter=tmp_path / "adapter", merge=merge)
    expected = logits_of(model.eval(), TOKENS)
    assert np.abs(np.asarray(ours(TOKENS)) - expected).max() <= TOLERANCE * np.abs(expected).max()


# ---- commands -------------------------------------------------------------------------------------------------------


def test_inspect_tells_which_part_is_read(tmp_path, whole):
    folder, _ = whole("qwen2_vl", tmp_path / "copy")
    n_vision = sum(name.startswith("visual.") for name in load_file(folder / "model.safetensors"))
    assert look(folder).loads
    lines = list(report(look(folder)))
    assert lines[2].split(maxsplit=1) == [
        "part", f"text part of a qwen2_vl checkpoint; {n_vision} tensors of the vision part are not read"
    ]
    assert lines[3].startswith("family      qwen2: ")


def test_converting_and_verifying(tmp_path, whole, monkeypatch):
    folder, expected = whole("qwen3_vl", tmp_path / "copy")
    convert(folder, tmp_path / "native")
    assert_equal_logits(tmp_path / "native", expected)
    assert_equal_logits(convert_back(tmp_path / "native", tmp_path / "back"), expected)
    verified = verify(folder, length=20)
    assert verified.passed and verified.model_type == "qwen3" and len(verified.residuals) == 4
    with pytest.raises(CheckpointError, match=r"transformers cannot run .*on text alone.*pixel_values"):
        verify(whole("instructblip", tmp_path / "blip")[0], length=20)
