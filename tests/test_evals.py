"""Evaluations follow their definitions, do not depend on the batch size, and are reproducible."""

import functools
import random
import sys
import types

import numpy as np
import pytest
from support.mistakes import Case, unreached
from support.models import CONFIGS, model, randomised
from test_models import close
from test_text import word_tokenizer
from test_training import Dataset
from test_utils import without

from jaxlens import HookedTransformer, Tokenizer, evals
from jaxlens.training import mmlu
from jaxlens.training.data import Batches, TokenDataset

WORDS = (
    "<s>", "<pad>", "?", "John", "Mary", "Ann", "Lee", "and", "went", "to", "the", "store", "market", "buy", "milk",
    "eggs", "bread", ".", ",", "handed", "gave", "Then", "A", "B", "C", "D", "Question", ":", "Choices", "Answer",
)  # fmt: skip


@functools.cache
def text_model(name="gpt2", side="right"):
    special = {"bos_token": "<s>", "eos_token": "?", "pad_token": "<pad>"}
    tokenizer = Tokenizer(word_tokenizer(WORDS), padding_side=side, **special)
    cfg = CONFIGS[name].replace(n_ctx=96)
    return HookedTransformer(cfg, tokenizer, params=randomised(cfg).params)


# --- the loss on text


def test_the_sanity_check_is_the_loss_on_a_fixed_text():
    the_model = text_model()
    close(evals.sanity_check(the_model), the_model(evals.ZOOM_IN, return_type="loss"))
    assert evals.ZOOM_IN.startswith("Many important transition points")


def test_the_loss_on_a_dataset_is_the_mean_over_its_first_batches():
    batches = [{"tokens": np.random.default_rng(i).integers(0, 37, (2, 9))} for i in range(5)]
    losses = [float(model("gpt2")(batch["tokens"], return_type="loss")) for batch in batches]
    assert evals.evaluate_on_dataset(model("gpt2"), batches) == pytest.approx(np.mean(losses), rel=1e-6)
    assert evals.evaluate_on_dataset(model("gpt2"), iter(batches), truncate=2) == pytest.approx(np.mean(losses[:2]))
    rows = Batches(TokenDataset(np.concatenate([batch["tokens"] for batch in batches])), 10)
    assert evals.evaluate_on_dataset(model("gpt2"), rows, device="cpu") == pytest.approx(np.mean(losses), rel=1e-5)


class Rows(Dataset):
    """A Dataset that can be indexed by rows."""

    def __len__(self):
        return len(self.columns["tokens"])

    def __getitem__(self, rows):
        return {"tokens": self.columns["tokens"][rows]}


class Counting:
    """A model whose loss is the number of its calls."""

    def __init__(self):
        self.tokenizer, self.shapes = text_model().tokenizer, []

    def __call__(self, tokens, return_type):
        self.shapes.append(tokens.shape)
        return float(len(self.shapes))


def test_every_corpus_has_a_loader(monkeypatch, capsys):
    calls = []

    def load_dataset(*arguments, split):
        calls.append((arguments, split))
        words = np.random.default_rng(0).choice(WORDS[3:], (40, 200))
        return Rows({evals.CORPORA[names[arguments]][1]: [" ".join(row) for row in words], "other": [0] * 40})

    names = {arguments: name for name, (arguments, _) in evals.CORPORA.items()}
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    for name in ("wiki", "owt", "pile", "code"):
        batches = getattr(evals, f"make_{name}_data_loader")(text_model().tokenizer, batch_size=3)
        assert len(batches) == 2 and next(iter(batches))["tokens"].shape == (3, 1024)
    assert calls == [(arguments, "train") for arguments, _ in evals.CORPORA.values()]
    counting = Counting()
    losses = evals.evaluate(counting, truncate=1, batch_size=2)
    assert losses == {"wiki_loss": 1.0, "owt_loss": 2.0, "pile_loss": 3.0, "code_loss": 4.0}
    assert counting.shapes == [(2, 1024)] * 4
    assert capsys.readouterr().out.splitlines()[0] == "wiki: 1.0"


# --- induction


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_induction_loss_is_the_loss_on_the_repetition(name, monkeypatch):
    the_model, inputs = text_model(name), []
    run, options = type(the_model).__call__, {"subseq_len": 11, "batch_size": 3}

    def recording(self, tokens, **options):
        inputs.append(tokens)
        return run(self, tokens, **options)

    monkeypatch.setattr(type(the_model), "__call__", recording)
    losses = [evals.induction_loss(the_model, prepend_bos=bos, **options) for bos in (None, True, False)]
    for tokens, loss, bos in zip(inputs, losses, (True, True, False), strict=True):
        assert tokens.shape == (3, 22) and np.array_equal(tokens[:, 1:11], tokens[:, 12:])
        assert (tokens[:, 0] == 0).all() == bos and tokens.min() >= 0 and tokens[:, 11:].min() >= 18
        per_token = run(the_model, tokens, return_type="loss", loss_per_token=True)
        close(loss, np.mean(per_token[:, 12:]))
    assert losses[0] == losses[1] != losses[2]
    assert evals.induction_loss(the_model, subseq_len=11) != evals.induction_loss(the_model, subseq_len=11, seed=1)
    other = Tokenizer(word_tokenizer(WORDS), bos_token="went")
    evals.induction_loss(the_model, other, subseq_len=11, device="cpu")
    assert (inputs[-1][:, 0] == WORDS.index("went")).all()


# --- indirect object identification


TRANSFORMERLENS_TEXTS = [  # IOIDataset(tokenizer, num_samples=4, seed=7) of TransformerLens 3.5.1
    "Then, Mary and John went to the store. Mary gave the eggs to John",
    "John and Mary went to the market to buy bread. Mary handed the bread to John",
    "Mary and John went to the store to buy eggs. John handed the eggs to Mary",
    "Mary and John went to the store to buy bread. John handed the bread to Mary",
]


def test_prompts_equal_those_of_transformerlens_with_the_same_seed():
    tokenizer = text_model().tokenizer
    texts = [sample["text"] for sample in evals.IOIDataset(tokenizer, num_samples=4, seed=7).samples]
    assert texts == TRANSFORMERLENS_TEXTS
    again = evals.IOIDataset(tokenizer, num_samples=4, seed=7).samples
    assert [sample["text"] for sample in again] == texts
    state = random.getstate()
    evals.IOIDataset(tokenizer, num_samples=4)
    assert random.getstate() == state


def test_items_are_a_sentence_and_two_names():
    tokenizer, nouns = text_model().tokenizer, {"OBJECT": ["milk", "bread"], "LOCATION": ["store"]}
    templates = ["[B] and [A] went to the [LOCATION] . [B] gave the [OBJECT] to [A]"]
    prompts = evals.IOIDataset(tokenizer, templates, ["John", "Ann", "Lee"], nouns, 6, symmetric=True, seed=1)
    assert len(prompts) == 6
    for first, second in zip(prompts.samples[::2], prompts.samples[1::2], strict=True):
        assert (first["IO"], first["S"]) == (second["S"], second["IO"])
        swap = {first["IO"].strip(): first["S"].strip(), first["S"].strip(): first["IO"].strip()}
        assert " ".join(swap.get(word, word) for word in first["text"].split()) == second["text"]
    for item, sample in zip(prompts, prompts.samples, strict=True):
        words = [WORDS[token] for token in item["prompt"]]
        assert words == ["<s>", *sample["text"].split()] and words[-1] == WORDS[item["IO"][0]]
        assert f" {WORDS[item['S'][0]]}" == sample["S"] and "[" not in sample["text"]
    without_bos = evals.IOIDataset(text_model().tokenizer, prepend_bos=False, num_samples=2, seed=0)
    assert without_bos[0]["prompt"][0] != 0 and len(without_bos) == 2
    assert evals.IOIDataset(word_tokenizer(WORDS), prepend_bos=False, num_samples=1)[0]["prompt"].dtype == np.int32


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_logit_difference_does_not_depend_on_the_batch(name, side):
    the_model = text_model(name, side)
    prompts = evals.IOIDataset(the_model.tokenizer, num_samples=11, seed=2, names=["John", "Mary", "Ann"])
    assert len({len(item["prompt"]) for item in prompts}) > 1
    differences = []
    for item in prompts:
        logits = the_model(item["prompt"][None, :-1])[0, -1]
        differences.append(float(logits[item["IO"][0]] - logits[item["S"][0]]))
    for batch_size in (1, 4, 32):
        result = evals.ioi_eval(the_model, prompts, batch_size=batch_size)
        assert result["Logit Difference"] == pytest.approx(np.mean(differences), abs=1e-5)
        assert result["Accuracy"] == pytest.approx(np.mean(np.array(differences) > 0))


def test_names_of_several_tokens_are_compared_at_the_first_difference():
    the_model = text_model()
    prompt, right, wrong = np.array([0, 8, 9, 3, 4, 5]), np.array([3, 4, 5]), np.array([3, 6])
    logits = the_model(prompt[None])[0, 3]
    result = evals.ioi_eval(the_model, [{"prompt": prompt, "IO": right, "S": wrong}])
    assert result["Logit Difference"] == pytest.approx(float(logits[4] - logits[6]), abs=1e-5)


def test_prompts_are_drawn_by_default():
    the_model = text_model()
    prompts = evals.IOIDataset(the_model.tokenizer, num_samples=10, symmetric=True, seed=3)
    assert evals.ioi_eval(the_model, num_samples=10, symmetric=True, seed=3) == evals.ioi_eval(the_model, prompts)
    assert evals.ioi_eval(the_model, num_samples=4) == evals.ioi_eval(the_model, num_samples=4)


# --- multiple choice


class Questions(list):
    def select(self, indices):
        return Questions(self[i] for i in indices)


def load_questions(path, subject, split):
    assert (path, split) == ("cais/mmlu", "test")
    rng = np.random.default_rng(len(subject))
    words = lambda n: " ".join(rng.choice(WORDS[3:18], n))  # noqa: E731
    return Questions(
        {"question": words(n), "choices": [words(2) for _ in range(4)], "answer": int(rng.integers(4)), "unused": 1}
        for n in rng.integers(1, 20, 5)
    )


def test_the_answer_is_the_likeliest_letter(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_questions))
    the_model, subjects = text_model(), ["anatomy", "astronomy"]
    questions = evals.make_mmlu_data_loader(subjects, num_samples=2)
    assert len(questions) == 4 and list(questions[0]) == ["question", "choices", "answer", "subject"]
    assert len(evals.make_mmlu_data_loader("anatomy")) == 5 and len(evals.make_mmlu_data_loader()) == 5 * 57
    letters, right = [WORDS.index(letter) for letter in "ABCD"], {subject: [] for subject in subjects}
    for question in questions:
        lines = [f"Question: {question['question']}", "Choices:"]
        lines += [f"{letter}. {text}" for letter, text in zip("ABCD", question["choices"], strict=True)]
        logits = the_model("\n".join([*lines, "Answer:"]))[0, -1]
        right[question["subject"]].append(int(np.argmax(logits[np.array(letters)])) == question["answer"])
    result = evals.mmlu_eval(the_model, subjects=subjects, num_samples=2)
    assert result["num_total"] == 4 and result["num_correct"] == sum(map(sum, right.values()))
    assert result["accuracy"] == pytest.approx(result["num_correct"] / 4)
    assert result["subject_scores"] == {subject: pytest.approx(np.mean(right[subject])) for subject in subjects}
    assert len(evals.MMLU_SUBJECTS) == len(set(evals.MMLU_SUBJECTS)) == 57


def test_a_letter_is_encoded_with_a_space_if_that_is_a_single_token():
    ids = {"A": [5], " A": [6], "B": [7], " B": [1, 7]}
    tokenizer = types.SimpleNamespace(encode=lambda text, add_special_tokens: ids[text])
    assert [mmlu._letter_token(tokenizer, letter) for letter in "AB"] == [6, 7]


# --- errors

MISTAKES = {
    "an empty data loader": Case(
        lambda: evals.evaluate_on_dataset(text_model(), []), ValueError, "the data loader gives no batches"
    ),
    "prompts without BOS": Case(
        lambda: evals.IOIDataset(Tokenizer(word_tokenizer())), ValueError, "prepend_bos=True needs a BOS token"
    ),
    "equal names": Case(
        lambda: evals.ioi_eval(text_model(), [{"prompt": [0, 3], "IO": [3], "S": [3, 4]}]), ValueError,
        "IO is [3] and S is [3, 4]; expected names that differ",
    ),
    "an empty dataset": Case(
        lambda: evals.ioi_eval(text_model(), num_samples=1, symmetric=True), ValueError, "the dataset is empty"
    ),
    "an empty batch": Case(
        lambda: evals.ioi_eval(text_model(), [{"prompt": [0, 3], "IO": [3], "S": [4]}], batch_size=0), ValueError,
        "batch_size is 0; expected 1 or more",
    ),
    "a prompt with another last token": Case(
        lambda: evals.ioi_eval(text_model(), [{"prompt": [0, 3, 2], "IO": [3], "S": [4]}]), ValueError,
        "prompt is [0, 3, 2]; expected it to end with the indirect object [3]",
    ),
    "a repetition of a single token": Case(
        lambda: evals.induction_loss(model("gpt2"), subseq_len=1), ValueError, "subseq_len is 1; expected 2 or more"
    ),
    "an unknown subject": Case(
        lambda: evals.make_mmlu_data_loader(["anatomy", "alchemy"]), ValueError, "subjects contains alchemy; expected"
    ),
    "no datasets for questions": Case(
        lambda: without("datasets", lambda: evals.make_mmlu_data_loader("anatomy")), ImportError, "MMLU needs the"
    ),
    "no datasets for a corpus": Case(
        lambda: without("datasets", lambda: evals.make_wiki_data_loader(text_model().tokenizer)), ImportError,
        "the corpus 'wiki' needs the package datasets",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_raises_the_expected_error(case):
    case.check()


def test_every_error_is_reached_by_a_case():
    assert unreached(__file__, MISTAKES.values()) == []
