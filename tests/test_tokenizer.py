"""The tokenizer: BOS, padding, and agreement with transformers on the same files."""

import copy
import json
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxlens.errors import CheckpointError
from jaxlens.text.tokenizer import Tokenizer

SENTENCES = [
    "The cat sat on the mat, and the dog sat on the cat.",
    "When Mary and John went to the store, John gave a drink to Mary.",
    "  Spaces, 12345 numbers\nand new lines; naïve café 😀 日本語.",
] * 3
STRINGS = ["The cat", " the mat", "", "  two  spaces ", "naïve 😀 日本", "12 345\n\n", "<s>inside</s> it", "\t"]


def byte_level(adds_bos: bool = False) -> tokenizers.Tokenizer:
    """A tokenizer like GPT-2's, with `adds_bos` like Llama 3's, whose post-processor adds BOS."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=["<s>", "</s>", "<pad>"], **options)
    backend.train_from_iterator(SENTENCES, trainer)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return backend


def metaspace(llama: bool) -> tokenizers.Tokenizer:
    """A tokenizer like SentencePiece, with T5's Metaspace, or with Llama 2's normalizer and decoder."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    backend.train_from_iterator(SENTENCES, trainer)
    if llama:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        backend.decoder = decoders.Sequence(steps)
    return backend


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    return Tokenizer(byte_level(), bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="module")
def adding() -> Tokenizer:
    return Tokenizer(byte_level(adds_bos=True), bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def without_bos() -> Tokenizer:
    return Tokenizer(byte_level())


def hugging_face(backend: tokenizers.Tokenizer, **special: str):
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def test_bos_is_never_duplicated_and_never_missing(plain, adding):
    body = plain.encode("The cat")
    assert (plain.prepends_bos, adding.prepends_bos) == (False, True)
    for tokenizer in (plain, adding):
        assert tokenizer.to_tokens("The cat").tolist() == [[0, *body]]
        assert tokenizer.to_tokens("The cat", prepend_bos=True).tolist() == [[0, *body]]
        assert tokenizer.to_tokens("The cat", prepend_bos=False).tolist() == [body]
        assert tokenizer.to_tokens("").tolist() == [[0]]
        assert tokenizer.to_tokens("", prepend_bos=False).shape == (1, 0)
        assert tokenizer.to_tokens("<s>The cat", prepend_bos=False).tolist() == [[0, *body]], "BOS in the text stays"
    assert adding.encode("The cat", add_special_tokens=True) == [0, *body] == adding.encode("<s>The cat")


def test_default_prepend_bos_applies_without_an_argument():
    tokenizer = Tokenizer(byte_level(adds_bos=True), bos_token="<s>", default_prepend_bos=False)
    assert tokenizer.to_tokens("cat")[0, 0] != 0
    assert tokenizer.to_tokens("cat", prepend_bos=True)[0, 0] == 0
    tokenizer.default_prepend_bos = True
    assert tokenizer.to_tokens("cat")[0, 0] == 0


def test_without_a_bos_token(without_bos):
    assert without_bos.bos_token is None and without_bos.bos_token_id is None and not without_bos.prepends_bos
    assert without_bos.to_tokens("cat").tolist() == without_bos.to_tokens("cat", prepend_bos=False).tolist()
    for method in (without_bos.to_tokens, without_bos.to_str_tokens):
        with pytest.raises(ValueError, match="prepend_bos=True needs a BOS token"):
            method("cat", prepend_bos=True)


def test_padding_on_either_side(plain):
    short, long = plain.encode("cat"), plain.encode("The cat sat")
    pads = [2] * (len(long) - len(short))
    right = plain.to_tokens(["cat", "The cat sat"])
    assert right.dtype == jnp.int32 and right.tolist() == [[0, *short, *pads], [0, *long]]
    assert plain.to_tokens(["cat", "The cat sat"], padding_side="left").tolist() == [[*pads, 0, *short], [0, *long]]
    left = copy.copy(plain)
    left.padding_side = "left"
    assert left.to_tokens(["cat", "The cat sat"]).tolist() == [[*pads, 0, *short], [0, *long]]
    with pytest.raises(ValueError, match='padding_side is \'up\'; expected "left" or "right"'):
        plain.to_tokens("cat", padding_side="up")
    with pytest.raises(ValueError, match="padding_side is 'middle'"):
        Tokenizer(byte_level(), padding_side="middle")


def test_the_pad_token_defaults_to_eos_or_bos(without_bos):
    assert Tokenizer(byte_level(), bos_token="<s>", eos_token="</s>").pad_token == "</s>"
    assert Tokenizer(byte_level(), bos_token="<s>").pad_token_id == 0
    assert without_bos.pad_token is None
    assert without_bos.to_tokens(["cat", "cat"]).shape[0] == 2, "equal lengths need no padding"
    with pytest.raises(ValueError, match="inputs of different lengths need a pad token"):
        without_bos.to_tokens(["cat", "The cat sat"])


def test_a_special_token_can_be_set_to_a_token_of_the_vocabulary():
    tokenizer = Tokenizer(byte_level(), bos_token="<s>")
    tokenizer.pad_token = "<pad>"
    tokenizer.eos_token = tokenizer.bos_token
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (2, 0, None)
    with pytest.raises(ValueError, match=r"eos_token is '<none>'; expected one of the tokenizer's \d+ tokens"):
        tokenizer.eos_token = "<none>"
    with pytest.raises(ValueError, match="bos_token is '<none>'"):
        Tokenizer(byte_level(), bos_token="<none>")


@pytest.mark.parametrize("pad", ["<pad>", "</s>", "<s>"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("prepend_bos", [True, False])
def test_attention_mask_is_zero_on_padding_only(pad, side, prepend_bos):
    tokenizer = Tokenizer(byte_level(), bos_token="<s>", eos_token="</s>", pad_token=pad)
    texts = ["cat", "The cat sat on the mat", "a</s>b<pad>c", ""]
    tokens = tokenizer.to_tokens(texts, prepend_bos, side)
    rows = [[0] * prepend_bos + tokenizer.encode(text) for text in texts]
    expected = [[1] * len(row) + [0] * (tokens.shape[1] - len(row)) for row in rows]
    expected = [row[::-1] for row in expected] if side == "left" else expected
    mask = tokenizer.attention_mask(tokens, prepend_bos, side)
    assert mask.dtype == jnp.int32 and mask.tolist() == expected
    traced = jax.jit(lambda tokens: tokenizer.attention_mask(tokens, prepend_bos, side))(tokens)
    assert traced.tolist() == expected
    assert tokenizer.attention_mask(tokens[0], prepend_bos, side).tolist() == expected[:1], "batch of one"


def test_attention_mask_treats_a_final_eos_as_padding(adding):
    ended = np.array([[*adding.encode("cat</s>"), 1, 1]])
    assert adding.attention_mask(ended).sum() == len(adding.encode("cat")), "EOS counts as padding"
    assert Tokenizer(byte_level()).attention_mask([[5, 6]]).tolist() == [[1, 1]]
    with pytest.raises(ValueError, match=r"tokens have shape \(1, 1, 2\)"):
        adding.attention_mask([[[5, 6]]])
    with pytest.raises(ValueError, match=r"tokens have shape \(\)"):
        adding.attention_mask(5)


def test_truncation_keeps_the_start_and_warns(plain):
    whole = plain.to_tokens("The cat sat on the mat")
    with pytest.warns(UserWarning, match=rf"an input of {whole.shape[1]} tokens was truncated to n_ctx = 4"):
        cut = plain.to_tokens(["The cat sat on the mat", "a"], n_ctx=4)
    assert cut[0].tolist() == whole[0, :4].tolist() and cut.shape == (2, 4)
    assert plain.to_tokens("The cat sat on the mat", n_ctx=4, truncate=False).shape == whole.shape
    assert plain.to_tokens("a", n_ctx=4).shape == (1, 2)


def test_invalid_input_of_to_tokens(plain):
    with pytest.raises(ValueError, match="input is an empty list"):
        plain.to_tokens([])
    for invalid in (5, None, [1, 2], ["a", 3], b"a"):
        with pytest.raises(TypeError, match=r"input is .*; expected a string or a list of strings"):
            plain.to_tokens(invalid)


def test_to_string_is_exact(plain):
    for text in STRINGS:
        tokens = plain.to_tokens(text, prepend_bos=False)
        assert plain.to_string(tokens) == [text] and plain.to_string(tokens[0]) == text
        assert plain.to_string(tokens[0].tolist()) == text == plain.decode(tokens[0])
    assert plain.to_string(plain.to_single_token("e")) == "e" and plain.to_string([]) == ""
    assert plain.to_string(plain.to_tokens(["cat", "The cat sat"]))[0].startswith("<s>cat<pad>")
    assert plain.batch_decode([[0, 5], [6]]) == [plain.decode([0, 5]), plain.decode(6)]
    assert plain.decode([0, *plain.encode("cat")], skip_special_tokens=True) == "cat"


def test_tokens_are_checked(plain):
    size = plain.vocab_size
    assert size == len(plain) == max(plain.get_vocab().values()) + 1
    for method in (plain.to_string, plain.to_str_tokens, plain.to_single_str_token, plain.decode):
        for invalid in (size, -1):
            with pytest.raises(ValueError, match=f"token {invalid} is outside the vocabulary; expected 0 to"):
                method([invalid])
        with pytest.raises(TypeError, match="tokens have dtype float64; expected integers"):
            method(np.array([1.5]))
    with pytest.raises(ValueError, match=r"tokens have shape \(1, 1, 1\); expected at most 2 axes"):
        plain.to_string([[[1]]])
    with pytest.raises(ValueError, match=r"tokens have shape \(1, 1\); expected at most 1 axes"):
        plain.decode([[1]])
    with pytest.raises(ValueError, match="the sequences of tokens differ in length"):
        plain.to_string([[1, 2], [3]])


def test_to_str_tokens(plain):
    strings = plain.to_str_tokens("The cat sat")
    assert strings[0] == "<s>" and "".join(strings[1:]) == "The cat sat" and " cat" in strings
    assert plain.to_str_tokens("The cat sat", prepend_bos=False) == strings[1:]
    assert plain.to_str_tokens(["The cat sat", "cat"]) == [strings, plain.to_str_tokens("cat")], "no padding"
    tokens = plain.to_tokens("The cat sat")
    for same in (tokens, tokens[0], tokens[0].tolist(), np.asarray(tokens)):
        assert plain.to_str_tokens(same) == strings
    assert plain.to_str_tokens([tokens[0], tokens]) == [strings, strings]
    assert plain.to_str_tokens(jnp.concatenate([tokens, tokens])) == [strings, strings]
    assert plain.to_str_tokens(5) == [plain.to_single_str_token(5)]
    assert plain.to_str_tokens([]) == [] == plain.to_str_tokens("", prepend_bos=False)
    assert "�" in "".join(plain.to_str_tokens("日"))


def test_single_tokens(plain):
    token = plain.to_single_token(" cat")
    assert isinstance(token, int) and plain.to_single_str_token(token) == " cat"
    assert plain.to_single_str_token(np.int64(token)) == " cat"
    with pytest.raises(ValueError, match=r"' cat the' is 2 tokens, not one: \[' cat', ' the'\]"):
        plain.to_single_token(" cat the")
    with pytest.raises(ValueError, match=r"'' is 0 tokens, not one: \[\]"):
        plain.to_single_token("")
    with pytest.raises(ValueError, match=r"int_token has shape \(2,\); expected a single token"):
        plain.to_single_str_token([1, 2])


def test_get_token_position(plain):
    text = "The cat sat on the cat"
    strings = plain.to_str_tokens(text)
    first, last = strings.index(" cat"), len(strings) - 1
    assert plain.get_token_position(" cat", text) == first
    assert plain.get_token_position(" cat", text, mode="last") == last
    assert plain.get_token_position(" cat", text, prepend_bos=False) == first - 1
    tokens = plain.to_tokens(text)
    assert plain.get_token_position(plain.to_single_token(" cat"), tokens) == first
    assert plain.get_token_position(jnp.asarray(plain.to_single_token(" cat")), tokens[0]) == first
    assert plain.get_token_position("<s>", text) == 0
    with pytest.raises(ValueError, match=r"the token ' the' \(id \d+\) is not in \['<s>'"):
        plain.get_token_position(" the", "cat")
    with pytest.raises(ValueError, match='mode is \'middle\'; expected "first" or "last"'):
        plain.get_token_position(" cat", text, mode="middle")
    with pytest.raises(ValueError, match=r"input is a batch of shape \(2, 2\); expected a string"):
        plain.get_token_position(5, [[5, 6], [6, 5]])


@pytest.mark.parametrize("kind", ["byte level", "llama", "metaspace"])
def test_agrees_with_transformers_on_the_same_file(kind):
    backend = byte_level(adds_bos=True) if kind == "byte level" else metaspace(llama=kind == "llama")
    hf = hugging_face(backend, bos_token="<s>", eos_token="</s>")
    for ours in (Tokenizer(backend, bos_token="<s>", eos_token="</s>"), Tokenizer(hf)):
        assert (ours.bos_token_id, ours.eos_token_id) == (hf.bos_token_id, hf.eos_token_id)
        for text in STRINGS:
            ids = hf.encode(text, add_special_tokens=False)
            assert ours.encode(text) == ids and ours.to_tokens(text).tolist() == [[hf.bos_token_id, *ids]]
            assert ours.encode(text, add_special_tokens=True) == hf.encode(text)
            assert ours.to_str_tokens(text, prepend_bos=False) == [hf.decode([index]) for index in ids]
            assert ours.to_string(ids) == hf.decode(ids)
        assert ours.to_str_tokens(np.arange(len(ours))) == [hf.decode([index]) for index in range(len(ours))]


def test_tokens_with_a_leading_space():
    byte, llama = (Tokenizer(make) for make in (byte_level(), metaspace(llama=True)))
    assert byte.to_single_str_token(byte.get_vocab()["Ġthe"]) == " the"
    assert llama.to_single_str_token(llama.get_vocab()["▁the"]) == "the", "as transformers' decode of one token"
    assert llama.to_string(llama.encode("on the mat")) == "on the mat"


def test_a_transformers_backend_provides_the_defaults():
    settings = {"padding_side": "left", "chat_template": "{{ 1 }}"}
    hf = hugging_face(byte_level(), bos_token="<s>", pad_token="<pad>", **settings)
    ours = Tokenizer(hf, eos_token="</s>")
    assert (ours.bos_token, ours.eos_token, ours.pad_token, ours.padding_side) == ("<s>", "</s>", "<pad>", "left")
    assert ours.chat_template == "{{ 1 }}" and ours.as_transformers() is hf and Tokenizer(hf).eos_token is None
    assert Tokenizer(hf, padding_side="right").padding_side == "right"


def test_other_methods_are_those_of_transformers(plain):
    pytest.importorskip("transformers")
    template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }};{% endfor %}"
    tokenizer = Tokenizer(byte_level(), bos_token="<s>", eos_token="</s>", chat_template=template)
    messages = [{"role": "user", "content": "the cat"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "user:the cat;"
    assert tokenizer.apply_chat_template(messages, return_dict=False) == tokenizer.encode("user:the cat;")
    assert tokenizer.convert_ids_to_tokens([0]) == ["<s>"] and tokenizer("cat")["input_ids"] == tokenizer.encode("cat")
    tokenizer.pad_token = "<pad>"
    assert tokenizer(["cat", "The cat sat"], padding=True)["input_ids"][0][-1] == 2, "the new pad token is used"
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        plain.apply_chat_template(messages)
    with pytest.raises(AttributeError, match="Tokenizer has no add_tokens; add tokens to the backend"):
        tokenizer.add_tokens(["new"])
    with pytest.raises(AttributeError, match="nonsense"):
        tokenizer.nonsense()


def test_the_types_of_backends(plain):
    for invalid in (5, "gpt2", plain):
        with pytest.raises(TypeError, match=r"expected a tokenizers\.Tokenizer or a transformers tokenizer"):
            Tokenizer(invalid)
    backend = byte_level()
    backend.enable_padding(length=32)
    backend.enable_truncation(2)
    assert Tokenizer(backend).encode("The cat sat") == plain.encode("The cat sat")
    assert backend.padding and backend.truncation, "the caller's object is unchanged"


def test_copy_pickle_and_repr(plain):
    for other in (copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
        assert other.to_tokens("The cat").tolist() == plain.to_tokens("The cat").tolist()
    assert repr(plain).startswith(f"Tokenizer({len(plain)} tokens, bos='<s>', eos='</s>', pad='<pad>', unk=None, ")


def test_save_and_from_folder_are_inverse(tmp_path):
    options = {"bos_token": "<s>", "eos_token": "</s>", "padding_side": "left", "default_prepend_bos": False}
    for number, template in enumerate((None, "{{ messages }}", {"default": "{{ 1 }}", "tools": "{{ 2 }}"})):
        saved = Tokenizer(byte_level(adds_bos=True), **options, chat_template=template)
        saved.save(tmp_path / str(number))
        loaded = Tokenizer.from_folder(tmp_path / str(number))
        assert repr(loaded) == repr(saved) and loaded.chat_template == template and loaded.prepends_bos
        assert all(loaded.encode(text) == saved.encode(text) for text in STRINGS)
    hf = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path / "1", local_files_only=True)
    assert hf.encode("The cat") == saved.encode("The cat", add_special_tokens=True)
    assert hf.padding_side == "left"
    Tokenizer(hf).save(tmp_path / "copy")
    assert Tokenizer.from_folder(tmp_path / "copy").encode("The cat") == saved.encode("The cat")


def test_a_slow_transformers_tokenizer(tmp_path):
    hf = pytest.importorskip("transformers").ByT5Tokenizer()
    ours = Tokenizer(hf, padding_side="left")
    assert ours.bos_token is None and ours.pad_token == "<pad>"
    assert ours.to_tokens("né").tolist() == [hf.encode("né", add_special_tokens=False)]
    assert ours.to_string(ours.to_tokens("né")) == ["né"]
    ours.save(tmp_path)
    loaded = Tokenizer.from_folder(tmp_path)
    assert loaded.encode("né") == ours.encode("né") and loaded.padding_side == "left"


def write(folder, **files: dict) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")


def test_from_folder_reads_special_tokens_from_several_files(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_folder(tmp_path).bos_token is None
    write(tmp_path, config={"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": None})
    assert (Tokenizer.from_folder(tmp_path).bos_token, Tokenizer.from_folder(tmp_path).eos_token) == ("<s>", "</s>")
    write(tmp_path, special_tokens_map={"bos_token": {"content": "</s>"}, "eos_token": "<pad>"})
    assert (Tokenizer.from_folder(tmp_path).bos_token, Tokenizer.from_folder(tmp_path).eos_token) == ("</s>", "<pad>")
    write(tmp_path, tokenizer_config={"bos_token": None, "chat_template": [{"name": "default", "template": "x"}]})
    loaded = Tokenizer.from_folder(tmp_path)
    assert loaded.bos_token is None and loaded.chat_template == {"default": "x"}
    (tmp_path / "chat_template.jinja").write_text("y", "utf-8")
    assert Tokenizer.from_folder(tmp_path).chat_template == "y"


def test_tokens_that_only_tokenizer_config_lists_are_added(tmp_path):
    backend = byte_level()
    backend.save(str(tmp_path / "tokenizer.json"))
    size = backend.get_vocab_size()
    listed = {str(size): {"content": "<new>", "special": True, "lstrip": False}, "0": {"content": "<s>"}}
    write(tmp_path, tokenizer_config={"added_tokens_decoder": listed, "pad_token": "[PAD]"})
    loaded = Tokenizer.from_folder(tmp_path)
    assert loaded.encode("a<new>")[-1] == size and loaded.pad_token_id == size + 1 and len(loaded) == size + 2
    write(tmp_path, tokenizer_config={"added_tokens_decoder": {"7": {"content": "<s>"}}})
    with pytest.raises(CheckpointError, match=r"'<s>' has id 7 in tokenizer_config\.json and id 0 in"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}, "<|im_start|>the cat<|im_end|>"),
        ({"extra_special_tokens": {"image_token": "<image>"}}, "<image>the"),
        ({"mask_token": "<mask>", "sep_token": "[SEP]", "cls_token": "[CLS]"}, "[CLS]the<mask>[SEP]"),
        ({"eos_token": {"content": "<END>", "lstrip": True, "rstrip": True, "__type": "AddedToken"}}, "a <END> b"),
        ({"split_special_tokens": True}, "the<s>cat"),
    ],
)
def test_special_tokens_beside_tokenizer_json_are_those_of_transformers(tmp_path, settings, text):
    transformers = pytest.importorskip("transformers")
    byte_level().save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", **settings})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert Tokenizer.from_folder(tmp_path).encode(text) == theirs.encode(text, add_special_tokens=False)


def test_older_files_of_added_tokens(tmp_path):
    backend = byte_level()
    backend.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, added_tokens={"<new>": backend.get_vocab_size()}, special_tokens_map={
        "additional_special_tokens": ["<new>"]
    })  # fmt: skip
    assert Tokenizer.from_folder(tmp_path).encode("a<new>")[-1] == backend.get_vocab_size()
    write(tmp_path, added_tokens={"<new>": 3})
    with pytest.raises(CheckpointError, match=r"'<new>' has id 3 in added_tokens\.json and id 340 in tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    write(tmp_path, added_tokens={}, tokenizer_config={"eos_token": {"text": "<s>"}})
    with pytest.raises(CheckpointError, match=r"a token of the tokenizer is \{.*\}; expected a text"):
        Tokenizer.from_folder(tmp_path)


def test_a_folder_without_a_readable_tokenizer(tmp_path):
    with pytest.raises(CheckpointError, match="missing is not a folder"):
        Tokenizer.from_folder(tmp_path / "missing")
    pytest.importorskip("transformers")
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json and no other tokenizer: "):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read: "):
        Tokenizer.from_folder(tmp_path)
    for broken in ("{", "[1]"):
        (tmp_path / "tokenizer_config.json").write_text(broken)
        with pytest.raises(CheckpointError, match=r"tokenizer_config\.json does not contain a JSON object"):
            Tokenizer.from_folder(tmp_path)


def test_a_tokenizer_is_loaded_by_name_and_without_weights(tmp_path, monkeypatch):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, tokenizer_config={"bos_token": "<s>"})
    requested = {}

    def download(name, **options):
        requested[name] = options
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for name in (str(tmp_path), "a/b"):
        assert Tokenizer.from_pretrained(name, revision="v1").bos_token_id == 0
    assert list(requested) == ["a/b"] and requested["a/b"]["revision"] == "v1"
    assert not any("safetensors" in pattern for pattern in requested["a/b"]["allow_patterns"])
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"'a b' is not a local folder, and cannot be downloaded"):
        Tokenizer.from_pretrained("a b")


def test_the_import_loads_neither_torch_nor_transformers():
    code = "import sys, jaxlens.text.tokenizer; sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
