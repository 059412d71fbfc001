"""lm-evaluation-harness gets the same numbers and texts from jaxlens as from its own `hf` model in float32."""

import json
import runpy
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from support.tiny import write_checkpoint
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from jaxlens import HookedTransformer

lm_eval = pytest.importorskip("lm_eval")
from lm_eval import __main__ as lm_eval_main  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from jaxlens.batch.lm_eval import JaxLensLM  # noqa: E402

SENTENCES = [
    "The cat sat on the mat, and the dog slept by the door.",
    "When the rain stopped, the children ran out to play in the garden.",
    "She gave the book to her brother, who had asked for it twice.",
    "In the morning the market was full of people, fruit and noise.",
    "The old clock in the hall struck nine. Nobody was there to hear it.",
    "A river runs through the town; its bridges are older than the houses.",
    "He counted: one, two, three, four, and then he opened his eyes.",
    "Snow fell all night, and by dawn the road had disappeared.",
    "The teacher wrote a long word on the board and asked what it meant.",
    "They sailed for six days before they saw an island.",
]
CHAT = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}[assistant] {% endif %}"


HF = {"device": "cpu", "dtype": "float32", "batch_size": 4, "attn_implementation": "eager"}


def write_tokenizer(folder, kind: str) -> int:
    """A byte-level tokenizer that adds BOS ("llama") or has one token for BOS and EOS ("gpt2"). Returns its size."""
    special = ["<s>", "</s>"] if kind == "llama" else ["<|endoftext|>"]
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    if kind == "llama":
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    roles = {"bos_token": special[0], "eos_token": special[-1]}
    PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=CHAT, **roles).save_pretrained(folder)
    return backend.get_vocab_size()


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folder(request, tmp_path_factory):
    """A checkpoint of transformers: GPT-2 with 48 learned positions, or Mistral with a window and BOS."""
    path = tmp_path_factory.mktemp("models") / request.param
    size = write_tokenizer(path, request.param)
    kind, last = ("gpt2", 0) if request.param == "gpt2" else ("mistral", 1)
    fields = {"n_positions": 48} if kind == "gpt2" else {"max_position_embeddings": 48, "sliding_window": 16}
    options = {"vocab_size": size, "bos_token_id": 0, "eos_token_id": last, "spread": 0.4, **fields}
    return str(write_checkpoint(path, kind, **options))


@pytest.fixture(scope="module")
def hf(folder):
    return HFLM(folder, **HF)


@pytest.fixture(scope="module")
def ours(folder):
    return JaxLensLM(folder, batch_size=4)


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, arguments_of_one, i) for i, arguments_of_one in enumerate(arguments)]


def same_numbers(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# --- whole evaluations


def rows() -> dict:
    """The data of the tasks, as lm_eval reads it."""
    from datasets import Dataset

    documents = [
        {"start": text[:20], "choices": [text[20:40], SENTENCES[i - 1][20:40], " the"], "right": i % 3, "text": text}
        for i, text in enumerate(SENTENCES)
    ]
    return {"test": Dataset.from_list(documents)}


def task(name: str, **fields) -> dict:
    return {"task": name, "custom_dataset": lambda **_: rows(), "test_split": "test", **fields}


TASKS = {
    "choices": {
        "output_type": "multiple_choice", "doc_to_text": "{{start}}", "doc_to_choice": "choices",
        "doc_to_target": "right", "target_delimiter": "",
    },
    "perplexity": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "texts": {
        "output_type": "generate_until", "doc_to_text": "{{start}}", "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": [" the", ".", "\n"], "max_gen_toks": 20, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}  # fmt: skip


def evaluated(lm):
    tasks = [task(name, **fields) for name, fields in TASKS.items()]
    manager = TaskManager(include_defaults=False)
    return lm_eval.simple_evaluate(lm, tasks=tasks, task_manager=manager, bootstrap_iters=0)


def test_an_evaluation_has_the_results_and_the_samples_of_the_hf_model(ours, hf):
    found, expected = evaluated(ours), evaluated(hf)
    for name, metrics in expected["results"].items():
        numbers = {key: value for key, value in metrics.items() if isinstance(value, float)}
        assert numbers and found["results"][name].keys() == metrics.keys()
        for key, value in numbers.items():
            same_numbers(found["results"][name][key], value)
    for name in TASKS:
        samples, others = found["samples"][name], expected["samples"][name]
        assert len(samples) == len(others) == len(SENTENCES)
        for sample, other in zip(samples, others, strict=True):
            if name == "texts":
                assert sample["resps"] == other["resps"]
            elif name == "perplexity":
                same_numbers(sample["resps"], other["resps"])
            else:
                scores, flags = zip(*[each[0] for each in sample["resps"]], strict=True)
                other_scores, other_flags = zip(*[each[0] for each in other["resps"]], strict=True)
                same_numbers(scores, other_scores)
                assert flags == other_flags


# --- single requests


def pairs(lm) -> list[tuple[str, str]]:
    """Contexts and continuations: short, empty, with spaces at the border, with BOS as text, and longer than n_ctx."""
    bos, long = lm.tokenizer.bos_token, " ".join(SENTENCES)
    return [
        ("The cat", " sat on"), ("The cat ", "sat on"), ("", "The cat"), ("The dog\n\n", "the"), (f"{bos}The", " cat"),
        (long, " the end"), (long[:150], long[150:220]), ("a", "b"), ("", f"{bos} the"),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:context 5 and its continuation have")
@pytest.mark.parametrize("options", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"prefix_token_id": 7}])
def test_log_probabilities_are_those_of_the_hf_model(folder, options):
    # with its cache, requests that divide the same tokens at different places get the logits of wrong positions
    hf = HFLM(folder, logits_cache=False, **HF, **options)
    lm = JaxLensLM(folder, **options)
    asked = requests("loglikelihood", pairs(hf))
    found, expected = lm.loglikelihood(asked, disable_tqdm=True), hf.loglikelihood(asked, disable_tqdm=True)
    same_numbers([score for score, _ in found], [score for score, _ in expected])
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    texts = requests("loglikelihood_rolling", [(" ".join(SENTENCES[:n]),) for n in (0, 1, 2, 5)])
    same_numbers(lm.loglikelihood_rolling(texts, True), hf.loglikelihood_rolling(texts, True))


def test_the_likeliest_continuation_is_greedy(ours, hf):
    context = "The cat sat"
    text = hf.generate_until(requests("generate_until", [(context, {"until": [], "max_gen_toks": 3})]), True)[0]
    asked = requests("loglikelihood", [(context, text)])
    assert ours.loglikelihood(asked, True)[0][1] == hf.loglikelihood(asked, True)[0][1]
    tokens = ours.tok_encode(context)
    new = ours.model.generate(np.array([tokens]), 3, do_sample=False, verbose=False, return_type="tokens")[0, -3:]
    (_, greedy), (_, other) = ours._loglikelihood_tokens(
        [(None, tokens, new.tolist()), (None, tokens, [*new.tolist()[:2], 5])], True
    )
    assert greedy and not other


@pytest.mark.filterwarnings("ignore:a prompt of")
def test_texts_are_those_of_the_hf_model(ours, hf):
    bos, long = hf.tokenizer.bos_token, " ".join(SENTENCES)
    varied = {"repetition_penalty": 2.0, "max_gen_toks": 12}
    kinds = (
        {"until": ["\n"], "max_gen_toks": 12}, {"until": ["e", "a", "H"], **varied},
        {"until": ["n", "er", " "], **varied},
        {"until": "ar", **varied, "do_sample": False}, {**varied, "temperature": 0},
    )  # fmt: skip
    asked = requests("generate_until", [(text, kind) for kind in kinds for text in ("The", "The cat sat", long)])
    texts = []
    for request in requests("generate_until", [(f"{bos}When", kinds[0])]) + asked:
        found, expected = ours.generate_until([request], True), hf.generate_until([request], True)
        assert found == expected, request.args
        texts.append(*found)
    assert len(set(texts)) > len(texts) / 3 and texts[4:7] != texts[13:16]  # not cut, because nothing stops them
    assert ours.generate_until(asked, True) == texts[1:]


def test_samples_follow_the_temperature(ours):
    options = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 5.0}
    asked = requests("generate_until", [("The cat", options)] * 4)
    assert len(set(ours.generate_until(asked, True))) == 4
    likeliest = requests("generate_until", [("The cat", options | {"top_k": 1}), ("The cat", {"max_gen_toks": 8})])
    assert len(set(ours.generate_until(likeliest, True))) == 1


def test_conversations_are_those_of_the_hf_model(ours, hf):
    chat = [{"role": "user", "content": "Where is the cat?"}]
    assert ours.apply_chat_template(chat) == hf.apply_chat_template(chat) == "[user] Where is the cat?\n[assistant] "
    chat.append({"role": "assistant", "content": "On the mat"})
    assert ours.apply_chat_template(chat, False) == hf.apply_chat_template(chat, False)
    assert ours.chat_template(True) == hf.chat_template(True) == CHAT


def test_hooks_act_on_scores_and_texts(ours, folder):
    hooks = [("blocks.0.hook_resid_post", lambda value, hook: value[..., ::-1])]
    edited = JaxLensLM(ours.model, hooks=hooks, max_length=40)
    asked = requests("loglikelihood", [("The cat", " sat")])
    tokens = np.array([edited.tok_encode("The cat sat")])
    n = len(tokens[0]) - len(edited.tok_encode("The cat"))
    loss = ours.model.run_with_hooks(tokens, return_type="loss", loss_per_token=True, fwd_hooks=hooks)
    same_numbers(edited.loglikelihood(asked, True)[0][0], -np.asarray(loss)[0, -n:].sum())
    asked = requests("generate_until", [("The cat", {"max_gen_toks": 8})])
    options = {"do_sample": False, "verbose": False, "return_type": "tokens", "fwd_hooks": hooks}
    new = ours.model.generate(np.array([edited.tok_encode("The cat")]), 8, **options)[0, -8:]
    assert edited.generate_until(asked, True) == [edited.tokenizer.decode(new, skip_special_tokens=True)]


# --- the command line, and errors


@pytest.mark.filterwarnings("ignore::RuntimeWarning:runpy")
def test_the_module_adds_the_model_to_lm_eval_and_runs_its_command_line(folder, ours, monkeypatch):
    found = {}

    def command_line():
        options = {"device": "cuda:0", "batch_size": 1, "task_manager": TaskManager(include_defaults=False)}
        tasks = [task("perplexity", **TASKS["perplexity"])]
        found.update(lm_eval.simple_evaluate("jaxlens", f"pretrained={folder}", tasks, limit=2, **options))

    monkeypatch.setattr(lm_eval_main, "cli_evaluate", command_line)
    runpy.run_module("jaxlens.batch.lm_eval", run_name="__main__")
    texts = requests("loglikelihood_rolling", [(text,) for text in SENTENCES[:2]])
    scores = [sample["resps"][0][0] for sample in found["samples"]["perplexity"]]
    same_numbers(scores, ours.loglikelihood_rolling(texts))


@pytest.mark.slow
def test_the_command_line_evaluates_the_model(folder, tmp_path):
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in SENTENCES[:2]))
    data = {"data_files": str(tmp_path / "data.jsonl"), "cache_dir": str(tmp_path / "cache")}
    settings = {"task": "here", "dataset_path": "json", "test_split": "train", "dataset_kwargs": data}
    (tmp_path / "here.yaml").write_text(json.dumps(settings | TASKS["perplexity"]))
    command = [sys.executable, "-m", "jaxlens.batch.lm_eval", "--model", "jaxlens", "--tasks", "here"]
    command += ["--model_args", f"pretrained={folder},dtype=float32", "--include_path", str(tmp_path)]
    subprocess.run([*command, "--output_path", str(tmp_path / "results")], check=True)
    (file,) = (tmp_path / "results").rglob("results_*.json")
    assert json.loads(file.read_text())["results"]["here"]["byte_perplexity,none"] > 1


def test_mistakes_are_answered(ours, folder):
    without = HookedTransformer(ours.model.cfg)
    nothing = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    no_special = HookedTransformer(ours.model.cfg, tokenizer=nothing)
    wrong_option, too_long = {"until": [], "num_beams": 4}, {"until": [], "max_gen_toks": 48}
    for mistake, error, text in (
        (lambda: JaxLensLM(without), ValueError, "this model has no tokenizer"),
        (lambda: JaxLensLM(no_special), ValueError, "the tokenizer has neither BOS nor EOS"),
        (lambda: JaxLensLM(ours.model, dtype="float32"), TypeError, "dtype: these arguments are for a name"),
        (lambda: JaxLensLM(ours.model, max_length=49), ValueError, "max_length is 49; expected 1 to 48"),
        (lambda: JaxLensLM(ours.model, batch_size="many"), ValueError, "batch_size is 'many'; expected a positive"),
        (lambda: JaxLensLM(folder, device="cuda:9"), ValueError, "there is no device 'cuda:9'"),
        (lambda: ours.generate_until(requests("", [("a", wrong_option)])), ValueError, "has num_beams; jaxlens knows"),
        (lambda: ours.generate_until(requests("", [("a", too_long)])), ValueError, "leaves no room for a prompt in 48"),
    ):
        with pytest.raises(error, match=text):
            mistake()
    assert JaxLensLM(ours.model, batch_size="auto:4").batch_size == 16
