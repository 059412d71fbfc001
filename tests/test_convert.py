"""Loading checkpoints: rules in both directions, unknown fields and tensors, and the text of every error."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from families import SIZES
from huggingface_hub import errors as hub_errors
from safetensors.numpy import load_file, save_file
from support.tiny import write_checkpoint

import jaxlens.checkpoints.families
from jaxlens import CheckpointError, Config
from jaxlens.checkpoints import all_families, hub, load, open_checkpoint
from jaxlens.checkpoints.exporter import ExportedTensors
from jaxlens.checkpoints.folder_reader import TensorFolder
from jaxlens.checkpoints.open import read_config
from jaxlens.checkpoints.parameters import load_parameters
from jaxlens.checkpoints.rules import completion
from jaxlens.checkpoints.rules.hf_config import Reader, complete
from jaxlens.checkpoints.rules.rule import Family, Rule
from jaxlens.checkpoints.safetensors_reader import read_json
from jaxlens.nn.parameters import parameter_shapes

LENGTHS = {"d": 5, "n": 6, "k": 2, "h": 3, "m": 7, "g": 3, "one": 1}


def refused(text):
    return pytest.raises(CheckpointError, match=re.escape(text))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A function that returns a tiny checkpoint of a model_type. Tests modify copies of it."""
    root, written = tmp_path_factory.mktemp("checkpoints"), {}

    def get(model_type):
        if model_type not in written:
            written[model_type] = write_checkpoint(root / model_type, model_type)
        return written[model_type]

    return get


@pytest.fixture
def folder(checkpoints, tmp_path):
    """A copy of the tiny Llama, which tests may modify."""
    return shutil.copytree(checkpoints("llama"), tmp_path / "llama")


def edit_config(folder, **fields):
    config = {**read_json(folder / "config.json"), **fields}
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder, remove=(), **changes):
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({name: value for name, value in tensors.items() if name not in remove}, folder / "model.safetensors")


# ---- rules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "theirs", "ours"),
    [
        (Rule("w", "W", "v d"), None, None),
        (Rule("w", "W", "(n h) d -> n d h"), (18, 5), [(6, 5, 3)]),
        (Rule("w", "W", "d (n h) -> n h d"), (5, 18), [(6, 3, 5)]),
        (Rule("w", ("Q", "K", "V"), "d (three n h) -> three n d h"), (5, 54), [(6, 5, 3)] * 3),
        (Rule("w", ("Q", "K", "V"), "(n three h) d -> three n d h"), (54, 5), [(6, 5, 3)] * 3),
        (
            Rule("w", ("Q", "K", "V"), "(all h) d -> all d h", split=("n", "k", "k")),
            (30, 5),
            [(6, 5, 3), (2, 5, 3), (2, 5, 3)],
        ),
        (Rule("w", ("gate", "in"), "(two m) d -> two d m"), (14, 5), [(5, 7)] * 2),
        (
            Rule("w", ("Q", "K", "V"), "(k all h) d -> all k d h", split=("g", "one", "one")),
            (30, 5),
            [(3, 2, 5, 3), (1, 2, 5, 3), (1, 2, 5, 3)],
        ),
    ],
)
def test_an_export_reverses_a_rule(rule, theirs, ours):
    lengths = {**LENGTHS, "v": 9}
    theirs, ours = theirs or (9, 5), ours or [(9, 5)]
    assert rule.their_shape(lengths) == theirs
    assert rule.our_shapes(lengths) == ours
    tensor = np.random.default_rng(0).normal(size=theirs)
    values = rule.load(tensor, lengths)
    assert [value.shape for value in values] == ours
    assert np.array_equal(rule.export(values, lengths), tensor)


def test_an_interleaved_and_a_blocked_fusion_differ():
    tensor = np.arange(12)
    blocked = Rule("w", ("Q", "K", "V"), "(three n h) -> three n h").load(tensor, {"n": 2, "h": 2})
    interleaved = Rule("w", ("Q", "K", "V"), "(n three h) -> three n h").load(tensor, {"n": 2, "h": 2})
    assert blocked[1].tolist() == [[4, 5], [6, 7]]
    assert interleaved[1].tolist() == [[2, 3], [8, 9]]


class Memory:
    """Tensors from a dict."""

    def __init__(self, tensors):
        self.tensors, self.read_names = tensors, []

    def names(self):
        return list(self.tensors)

    def shape(self, name):
        return self.tensors[name].shape

    def read(self, name):
        self.read_names.append(name)
        return self.tensors[name]


def exported(family, cfg, params):
    tensors = ExportedTensors(family, cfg, params)
    return {name: np.ascontiguousarray(tensors.read(name)) for name in tensors.names()}


def mixture():
    """A model with a dense first layer and experts in the others: two stacks, and separate tensors per expert."""
    cfg = Config(
        n_layers=4, d_model=5, n_heads=2, d_head=3, d_mlp=7, d_vocab=9, n_ctx=8, gated_mlp=True, act_fn="silu",
        normalization_type=None, biases=(), tie_word_embeddings=True, num_experts=3, experts_per_token=2,
        moe_layers=(False, True, True, True), positional_embedding_type="none",
    )  # fmt: skip

    def rules(cfg):
        dense = tuple(layer for layer in range(cfg.n_layers) if not cfg.moe_layers[layer])
        sparse = tuple(layer for layer in range(cfg.n_layers) if cfg.moe_layers[layer])
        yield Rule("embed", "embed.W_E", "v d")
        for letter in "QKV":
            yield Rule(f"layer.{{l}}.{letter}", f"blocks.{{l}}.attn.W_{letter}", "(n h) d -> n d h")
        yield Rule("layer.{l}.O", "blocks.{l}.attn.W_O", "d (n h) -> n h d")
        yield Rule("layer.{l}.router", "blocks.{l}.mlp.W_router", "e d -> d e", layers=sparse)
        for ours, pattern in (("W_in", "m d -> d m"), ("W_gate", "m d -> d m"), ("W_out", "d m -> m d")):
            yield Rule(f"layer.{{l}}.{ours}", f"blocks.{{l}}.mlp.{ours}", pattern, layers=dense)
            yield Rule(f"layer.{{l}}.expert.{{e}}.{ours}", f"blocks.{{l}}.mlp.{ours}", pattern, layers=sparse)

    return cfg, Family(model_types=("mixture",), config=None, rules=rules)


def test_experts_and_several_stacks():
    cfg, family = mixture()
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=shape.shape).astype(np.float32) for name, shape in parameter_shapes(cfg).items()}
    tensors = exported(family, cfg, params)
    assert tensors["layer.2.expert.1.W_in"].shape == (7, 5)
    assert np.array_equal(tensors["layer.2.expert.1.W_in"].T, params["blocks.1-3.mlp.W_in"][1, 1])
    assert np.array_equal(tensors["layer.0.W_in"].T, params["blocks.0.mlp.W_in"][0])
    back = load_parameters(family, cfg, Memory(tensors))
    assert list(back) == list(params)
    assert all(np.array_equal(back[name], params[name]) for name in params)

    source, kept = Memory(tensors), cfg.first_layers(2)
    cut = load_parameters(family, cfg, source, kept=kept)
    assert not [name for name in source.read_names if name.startswith(("layer.2", "layer.3"))]
    assert np.array_equal(cut["blocks.1.mlp.W_out"], params["blocks.1-3.mlp.W_out"][:1])
    assert {name: value.shape for name, value in cut.items()} == {
        name: shape.shape for name, shape in parameter_shapes(kept).items()
    }


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ([Rule("embed", "embed.W_E", "v d")], "embed.W_E[] is filled 2 times, expected 1"),
        ([Rule("b", "unembed.b_U", "v")], "unembed.b_U[] is filled 1 times, expected 0"),
    ],
)
def test_rules_that_fill_a_parameter_twice_or_an_unknown_parameter(extra, text):
    cfg, family = mixture()
    params = {name: np.zeros(shape.shape, np.float32) for name, shape in parameter_shapes(cfg).items()}
    wrong = Family(model_types=(), config=None, rules=lambda cfg: [*family.rules(cfg), *extra])
    with refused(f"the rules of this family do not match the model: {text}"):
        exported(wrong, cfg, params)


def test_rules_that_omit_a_parameter_or_give_it_a_wrong_shape():
    cfg, family = mixture()
    params = {name: np.zeros(shape.shape, np.float32) for name, shape in parameter_shapes(cfg).items()}
    for omitted, text in (
        ("layer.{l}.router", "blocks.1-3.mlp.W_router[] is filled 0 times, expected 1"),
        (None, "embed.W_E[] gets shape (9, 5), expected (9, 4)"),
    ):
        rules = [rule for rule in family.rules(cfg) if rule.theirs != omitted]
        wrong = Family((), None, lambda cfg, rules=rules: rules)
        changed = {} if omitted else {"embed.W_E": np.zeros((9, 4), np.float32)}
        with refused(text):
            exported(wrong, cfg, params | changed)


def test_a_family_is_a_file_in_the_folder(tmp_path, monkeypatch):
    (tmp_path / "dropped_in.py").write_text(
        "from jaxlens.checkpoints.families.llama import FAMILY\nimport dataclasses\n"
        "FAMILY = dataclasses.replace(FAMILY, model_types=('dropped_in',))\n"
    )
    package = jaxlens.checkpoints.families
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    assert all_families()["dropped_in"].rules is all_families()["llama"].rules
    (tmp_path / "dropped_in_again.py").write_text("from jaxlens.checkpoints.families.llama import FAMILY\n")
    with refused("llama.py in checkpoints/families has the model_types ['llama'], which another module also has"):
        all_families()
    for name in ("dropped_in", "dropped_in_again"):
        sys.modules.pop(f"jaxlens.checkpoints.families.{name}")


# ---- tensors that do not match --------------------------------------------------------------------------------------


def test_missing_tensors(folder):
    edit_tensors(folder, remove=("model.norm.weight", "model.layers.1.mlp.up_proj.weight"))
    text = "2 tensors are missing: model.layers.1.mlp.up_proj.weight, model.norm.weight"
    with refused(f"{folder}: the tensors do not match config.json. {text}"):
        load(folder)


def test_many_missing_tensors_are_counted(folder):
    edit_config(folder, num_hidden_layers=5)
    with refused(", … and 10 more"):
        load(folder)


def test_unknown_tensors(folder):
    edit_tensors(folder, **{"model.layers.0.self_attn.q_proj.bias": np.zeros(48, np.float32)})
    with refused("1 tensor is not part of this architecture: model.layers.0.self_attn.q_proj.bias"):
        load(folder)


def test_tensors_of_the_wrong_shape(folder):
    edit_tensors(folder, **{"model.layers.0.self_attn.q_proj.weight": np.zeros((36, 48), np.float32)})
    name = "model.layers.0.self_attn.q_proj.weight"
    with refused(f"1 tensor is of the wrong shape: {name} is (36, 48), expected (48, 36) = [(n h) d]"):
        load(folder)


def test_tensors_of_integers(folder):
    edit_tensors(folder, **{"model.norm.weight": np.zeros(36, np.int32)})
    with refused("1 tensor is not floating point: model.norm.weight is I32"):
        load(folder)


def test_all_problems_are_in_one_message(folder):
    edit_tensors(folder, remove=("model.norm.weight",), score=np.zeros(3, np.float32))
    with refused("1 tensor is missing: model.norm.weight. 1 tensor is not part of this architecture: score"):
        load(folder)


@pytest.mark.parametrize("value", [np.array(0.6, np.float32), np.array([0.5], np.float32)])
def test_a_constant_with_a_wrong_value(checkpoints, tmp_path, value):
    folder = shutil.copytree(checkpoints("apertus"), tmp_path / "apertus")
    name = "model.layers.1.mlp.act_fn.beta"
    edit_tensors(folder, **{name: value})
    with refused(f"{name} is {value}; expected 0.5, a constant of this architecture"):
        load(folder)


def test_an_unembedding_that_repeats_the_embedding_and_one_that_does_not(folder):
    edit_config(folder, tie_word_embeddings=True)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    with refused("lm_head.weight differs from model.embed_tokens.weight"):
        load(folder)
    edit_tensors(folder, **{"lm_head.weight": embedding})
    assert "unembed.W_U" not in load(folder).params


def test_tensors_that_are_not_weights_are_ignored(folder):
    edit_tensors(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)})
    load(folder)


def test_weights_are_cast_when_they_are_read(folder):
    exact = load(folder).params
    for dtype in ("bfloat16", "float16"):
        cast = load(folder, dtype=dtype)
        assert cast.cfg.dtype == dtype
        for name, value in cast.params.items():
            assert np.array_equal(value, np.asarray(exact[name]).astype(value.dtype)), name


# ---- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "options", "text"),
    [
        ("llama", {"first_n_layers": 4}, "first_n_layers is 4; expected 1 to 3"),
        ("llama", {"first_n_layers": 0}, "first_n_layers is 0; expected 1 to 3"),
        ("llama", {"n_ctx": 0}, "n_ctx is 0; expected a positive integer"),
        ("gpt2", {"n_ctx": 65}, "n_ctx is 65; expected at most 64, the number of learned positions"),
        ("llama", {"dtype": "int8"}, "dtype is 'int8'; expected one of"),
        ("llama", {"dtype": "float64"}, 'dtype float64 needs jax.config.update("jax_enable_x64", True)'),
    ],
)
def test_arguments_that_do_not_match_the_checkpoint(checkpoints, model_type, options, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        load(checkpoints(model_type), **options)


def test_a_rotary_model_accepts_a_longer_context(checkpoints):
    assert load(checkpoints("llama"), n_ctx=10_000).cfg.n_ctx == 10_000


# ---- config.json ----------------------------------------------------------------------------------------------------


def rope(**parameters):
    return {"rope_parameters": {"rope_theta": 500.0, **parameters}}


def long_rope(long, short):
    return rope(rope_type="longrope", factor=2.0, long_factor=long, short_factor=short)


@pytest.mark.parametrize(
    ("model_type", "fields", "text"),
    [
        ("llama", {"model_type": "lama"}, "model_type is 'lama', which is not supported. Did you mean llama"),
        ("llama", {"model_type": None}, "model_type is None, which is not supported"),
        (
            "llama",
            {"hidden_size": "abc"},
            "transformers' LlamaConfig rejects it: Validation error for field 'hidden",
        ),
        (
            "llama",
            {"num_attention_heads": 0},
            "transformers' LlamaConfig rejects it: integer modulo by zero",
        ),
        ("llama", {"hidden_size": -36}, "config.json: hidden_size is -36; expected a positive integer"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; expected at most 10,000"),
        ("gpt_neo", {"attention_types": [[["global"], 10**9]]}, "expected at most 10,000"),
        ("llama", {"num_key_value_heads": 4}, "config.json does not describe a valid model: n_key_value_heads is 4"),
        ("llama", {"qk_layernorm": True}, "config.json has fields that jaxlens does not read"),
        ("llama", {"qk_layernorm": True}, "qk_layernorm = True. The model may depend on them. If they do"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config.quant_method is None; expected one of "),
        ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder = True"),
        ("llama", {"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'; expected one of "),
        ("llama", {"rope_interleaved": True}, "rope_interleaved is True; expected False: a Llama pairs the halves"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; expected 1: this architecture"),
        ("llama", rope(rope_type="spiral"), "rope_parameters.rope_type is 'spiral'; expected one of default, linear"),
        ("llama", rope(rope_type="linear", factor=[]), "rope_parameters.factor is []; expected a finite number"),
        ("llama", rope(rope_type="linear", factor=-1), "rope_parameters.factor is -1; expected a number above zero"),
        ("llama", rope(rope_type="default", factor=2.0), "rope_parameters.factor = 2.0"),
        ("llama", rope(rope_theta=float("nan")), "rope_parameters.rope_theta is nan; expected a finite number"),
        ("llama", {**rope(), "rope_theta": 700.0}, "rope_theta = 700.0"),
        ("llama", {**rope(), "rope_scaling": {"rope_type": "linear"}}, "transformers' LlamaConfig rejects it"),
        ("llama", rope(rope_type="yarn", factor=2.0, truncate="no"), "truncate is 'no'; expected true or false"),
        ("llama", long_rope([1.0] * 4, ["a"] * 4), "list of numbers"),
        ("llama", long_rope([1.0] * 3, [1.0] * 4), "has 3 entries"),
        ("llama", {"rope_parameters": 3}, "transformers' LlamaConfig rejects it"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True"),
        ("gpt2", {"activation_function": 3}, "transformers' GPT2Config rejects it"),
        ("gpt_neo", {"attention_layers": ["global", "far", "local"]}, "expected a list of 'global' and 'local'"),
        ("qwen2", {"use_mrope": True}, "use_mrope is True; expected False: jaxlens does not implement"),
        (
            "qwen2",
            {"layer_types": ["sliding_attention"] * 3},
            "sliding_window is None; expected a window size",
        ),
        ("qwen3", {"layer_types": ["chunked_attention"] * 3}, "a list of 'full_attention' and 'sliding_attention'"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True; expected False"),
        ("gemma2", {"sliding_window_size": 9}, "sliding_window_size is 9; expected 7"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0; expected null"),
        ("gemma3", {"text_config": {**SIZES["gemma3"]["text_config"], "new": 1}}, "text_config.new = 1"),
    ],
)
def test_invalid_configs(checkpoints, model_type, fields, text):
    with refused(text):
        read_config({**read_json(checkpoints(model_type) / "config.json"), **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {
            "attention_dropout": 0.3,
            "initializer_range": 0.5,
            "use_cache": False,
            "temperature": 0.3,
            "num_labels": 10**9,
        },
        {"transformers.js_config": {"dtype": "q4"}, "is_llama_config": True, "rope_interleaved": False},
        {"torch_dtype": "bfloat16", "unsloth_fixed": True, "pretraining_tp": 2, "quantization_config": None},
        {"rope_theta": 10000.0, "rope_scaling": None},
    ],
)
def test_fields_that_do_not_change_inference(checkpoints, fields):
    plain = read_json(checkpoints("llama") / "config.json")
    assert read_config({**plain, **fields})[1] == read_config(plain)[1]


def test_fields_left_out_have_the_defaults_of_transformers():
    cfg = read_config({"model_type": "mistral"})[1]
    assert (cfg.n_layers, cfg.d_head, cfg.windows[0], cfg.rotary[0].base) == (32, 128, 4096, 10000.0)


def test_completing_a_config_does_not_modify_it():
    fields = {"model_type": "llama", "rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    before = json.dumps(fields)
    assert complete(fields)["rope_parameters"] == {
        "type": "linear",
        "factor": 2.0,
        "rope_type": "linear",
        "rope_theta": 7.0,
    }
    assert json.dumps(fields) == before


def test_a_config_is_completed_by_transformers_once(tmp_path, monkeypatch):
    """The next process does without transformers, unless what is on disk is damaged."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fields = {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}
    expected = complete(fields)
    (kept,) = (tmp_path / "jaxlens" / "configs").iterdir()
    monkeypatch.setattr(completion, "_config_classes", lambda: pytest.fail("transformers is imported"))
    assert complete(fields) == expected
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept.write_text(kept.read_text()[:-9])
    assert complete(fields) == expected
    assert json.loads(kept.read_text())
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))  # no folder can be made there
    assert complete(fields) == expected


def test_fields_of_a_model_type_unknown_to_transformers_are_unchanged():
    assert complete({"model_type": "not_in_transformers", "x": 1}) == {"model_type": "not_in_transformers", "x": 1}


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (lambda hf: hf("absent"), "config.json has no absent, which this architecture needs"),
        (lambda hf: hf("null"), "config.json has no null, which this architecture needs"),
        (lambda hf: hf.size("flag"), "flag is True; expected a positive integer"),
        (lambda hf: hf.size("half"), "half is 0.5; expected a positive integer"),
        (lambda hf: hf.number("flag"), "flag is True; expected a finite number"),
        (lambda hf: hf.positive("zero"), "zero is 0; expected a number above zero"),
        (lambda hf: hf.numbers("flag"), "flag is True; expected a list of numbers"),
        (lambda hf: hf.flag("half"), "half is 0.5; expected true or false"),
        (lambda hf: hf.inside("half"), "half is 0.5; expected an object"),
        (lambda hf: hf.inside("rope").number("theta"), "config.json has no rope.theta"),
        (lambda hf: hf.expect("half", 1, 2, because="reason"), "half is 0.5; expected 1 or 2: reason"),
        (lambda hf: hf.flag("long"), f"{'[1, ' + '1, ' * 65 + '1'}…; expected true or false"),
    ],
)
def test_errors_of_the_reader(read, text):
    fields = {"null": None, "flag": True, "half": 0.5, "zero": 0, "rope": {"x": 1}, "long": [1] * 1000}
    with refused(text):
        read(Reader(fields))


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./no/such/folder", "/absolute/nowhere", "three/part/name", ""])
def test_paths_that_do_not_exist(name):
    with refused(f"{name!r} is not a local folder or file, and not a Hugging Face id (owner/name); check the path"):
        load(name)


def hub_error(kind):
    """An error of the Hugging Face client, without the response that it usually contains."""
    return kind.__new__(kind, "message")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (hub_error(hub_errors.GatedRepoError), "it is gated: accept its license at https://huggingface.co/a/b"),
        (hub_error(hub_errors.RepositoryNotFoundError), "it does not exist or is private: check the name"),
        (hub_error(hub_errors.RevisionNotFoundError), "as a Hugging Face id at revision 'v9', it does not exist"),
        (
            hub_errors.LocalEntryNotFoundError("offline"),
            "run `hf download a/b --local-dir FOLDER`, and pass the folder",
        ),
        (hub_errors.OfflineModeIsEnabled("offline"), "it is not in the local cache and cannot be downloaded"),
        (ConnectionError("no route"), "(ConnectionError: no route)"),
    ],
)
def test_ids_that_cannot_be_downloaded(monkeypatch, error, text):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with refused(text):
        load("a/b", revision="v9")


def test_an_id_that_can_be_downloaded(monkeypatch, checkpoints):
    requested = {}

    def download(name, **options):
        requested.update(options, name=name)
        return str(checkpoints("llama"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    loaded = load("owner/name", revision="v1")
    assert (loaded.name, requested["name"], requested["revision"]) == ("owner/name", "owner/name", "v1")
    assert requested["allow_patterns"] == hub.FILE_PATTERNS
    assert not any(pattern.endswith((".bin", ".pt")) for pattern in hub.FILE_PATTERNS)


# ---- opening --------------------------------------------------------------------------------------------------------


def test_opening_reads_no_weights(folder, monkeypatch):
    monkeypatch.setattr(TensorFolder, "read", None)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.cfg.n_layers == 3
    assert checkpoint.tokenizer() is None
    assert checkpoint.source["model_type"] == "llama"


def test_torch_is_not_needed(folder):
    program = (
        "from importlib.machinery import PathFinder; find = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *rest: None if name.split('.')[0] == 'torch' else find(name, *rest)\n"
        f"import jaxlens; from jaxlens.checkpoints import load; loaded = load({str(folder)!r})\n"
        "model = jaxlens.HookedTransformer(loaded.cfg, params=loaded.params)\n"
        "assert model([[1, 2]]).shape == (1, 2, 61)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_importing_jaxlens_imports_neither_torch_nor_transformers():
    program = "import jaxlens.checkpoints, sys; assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True)
