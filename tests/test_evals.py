"""Evaluations follow their definitions, whatever the batch, and are the same every time."""

import functools
import random
import sys
import types

import numpy as np
import pytest
from mistakes import Case, unreached
from models import CONFIGS, model, randomised
from test_models import close
from test_text import word_tokenizer
from test_utils import Dataset, without

from jaxlens import HookedTransformer, Tokenizer, evals, mmlu
from jaxlens.data import Batches, TokenDataset

WORDS = (
    "<s>", "<pad>", "?", "John", "Mary", "Ann", "Lee", "and", "went", "to", "the", "store", "market", "buy", "milk",
    "eggs", "bread", ".", ",", "handed", "gave", "Then", "A", "B", "C", "D", "Question", ":", "Choices", "Answer",
)  # fmt: skip


@functools.cache
def reading(name="gpt2", side="right"):
    special = {"bos_token": "<s>", "eos_token": "?", "pad_token": "<pad>"}
    tokenizer = Tokenizer(word_tokenizer(WORDS), padding_side=side, **special)
    cfg = CONFIGS[name].replace(n_ctx=96)
    return HookedTransformer(cfg, tokenizer, params=randomised(cfg).params)


# --- the loss on text


def test_a_sanity_check_is_the_loss_on_a_fixed_text():
    the_model = reading()
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
    """A Dataset that can be read by rows."""

    def __len__(self):
        return len(self.columns["tokens"])

    def __getitem__(self, rows):
        return {"tokens": self.columns["tokens"][rows]}


class Counting:
    """A model whose loss is the number of times that it was run."""

    def __init__(self):
        self.tokenizer, self.shapes = reading().tokenizer, []

    def __call__(self, tokens, return_type):
        self.shapes.append(tokens.shape)
        return float(len(self.shapes))


def test_every_corpus_is_read_by_its_own_loader(monkeypatch, capsys):
    asked = []

    def load_dataset(*where, split):
        asked.append((where, split))
        words = np.random.default_rng(0).choice(WORDS[3:], (40, 200))
        return Rows({evals.CORPORA[names[where]][1]: [" ".join(row) for row in words], "other": [0] * 40})

    names = {where: name for name, (where, _) in evals.CORPORA.items()}
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    for name in ("wiki", "owt", "pile", "code"):
        batches = getattr(evals, f"make_{name}_data_loader")(reading().tokenizer, batch_size=3)
        assert len(batches) == 2 and next(iter(batches))["tokens"].shape == (3, 1024)
    assert asked == [(where, "train") for where, _ in evals.CORPORA.values()]
    counting = Counting()
    losses = evals.evaluate(counting, truncate=1, batch_size=2)
    assert losses == {"wiki_loss": 1.0, "owt_loss": 2.0, "pile_loss": 3.0, "code_loss": 4.0}
    assert counting.shapes == [(2, 1024)] * 4
    assert capsys.readouterr().out.splitlines()[0] == "wiki: 1.0"


# --- induction


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_induction_loss_is_the_loss_on_what_was_said_before(name, monkeypatch):
    the_model, seen = reading(name), []
    run, how = type(the_model).__call__, {"subseq_len": 11, "batch_size": 3}

    def seeing(self, given, **how):
        seen.append(given)
        return run(self, given, **how)

    monkeypatch.setattr(type(the_model), "__call__", seeing)
    losses = [evals.induction_loss(the_model, prepend_bos=bos, **how) for bos in (None, True, False)]
    for given, loss, bos in zip(seen, losses, (True, True, False), strict=True):
        assert given.shape == (3, 22) and np.array_equal(given[:, 1:11], given[:, 12:])
        assert (given[:, 0] == 0).all() == bos and given.min() >= 0 and given[:, 11:].min() >= 18
        per_token = run(the_model, given, return_type="loss", loss_per_token=True)
        close(loss, np.mean(per_token[:, 12:]))
    assert losses[0] == losses[1] != losses[2]
    assert evals.induction_loss(the_model, subseq_len=11) != evals.induction_loss(the_model, subseq_len=11, seed=1)
    other = Tokenizer(word_tokenizer(WORDS), bos_token="went")
    evals.induction_loss(the_model, other, subseq_len=11, device="cpu")
    assert (seen[-1][:, 0] == WORDS.index("went")).all()


# --- indirect objects


TRANSFORMERLENS_TEXTS = [  # IOIDataset(tokenizer, num_samples=4, seed=7) of TransformerLens 3.5.1
    "Then, Mary and John went to the store. Mary gave the eggs to John",
    "John and Mary went to the market to buy bread. Mary handed the bread to John",
    "Mary and John went to the store to buy eggs. John handed the eggs to Mary",
    "Mary and John went to the store to buy bread. John handed the bread to Mary",
]


def test_prompts_are_those_that_transformerlens_draws_with_the_same_seed():
    tokenizer = reading().tokenizer
    texts = [sample["text"] for sample in evals.IOIDataset(tokenizer, num_samples=4, seed=7).samples]
    assert texts == TRANSFORMERLENS_TEXTS
    again = evals.IOIDataset(tokenizer, num_samples=4, seed=7).samples
    assert [sample["text"] for sample in again] == texts
    state = random.getstate()
    evals.IOIDataset(tokenizer, num_samples=4)
    assert random.getstate() == state


def test_items_are_a_sentence_and_two_names():
    nouns = {"THING": ["milk", "bread"], "PLACE": ["store"]}
    templates = ["[B] and [A] went to the [PLACE] . [B] gave the [THING] to [A]"]
    prompts = evals.IOIDataset(reading().tokenizer, templates, ["John", "Ann", "Lee"], nouns, 6, symmetric=True, seed=1)
    assert len(prompts) == 6
    for first, second in zip(prompts.samples[::2], prompts.samples[1::2], strict=True):
        assert (first["IO"], first["S"]) == (second["S"], second["IO"])
        swap = {first["IO"].strip(): first["S"].strip(), first["S"].strip(): first["IO"].strip()}
        assert " ".join(swap.get(word, word) for word in first["text"].split()) == second["text"]
    for item, sample in zip(prompts, prompts.samples, strict=True):
        words = [WORDS[token] for token in item["prompt"]]
        assert words == ["<s>", *sample["text"].split()] and words[-1] == WORDS[item["IO"][0]]
        assert f" {WORDS[item['S'][0]]}" == sample["S"] and "[" not in sample["text"]
    without_bos = evals.IOIDataset(reading().tokenizer, prepend_bos=False, num_samples=2, seed=0)
    assert without_bos[0]["prompt"][0] != 0 and len(without_bos) == 2
    assert evals.IOIDataset(word_tokenizer(WORDS), prepend_bos=False, num_samples=1)[0]["prompt"].dtype == np.int32


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_logit_difference_is_that_of_each_prompt_alone(name, side):
    the_model = reading(name, side)
    prompts = evals.IOIDataset(the_model.tokenizer, num_samples=11, seed=2, names=["John", "Mary", "Ann"])
    assert len({len(item["prompt"]) for item in prompts}) > 1
    differences = []
    for item in prompts:
        logits = the_model(item["prompt"][None, :-1])[0, -1]
        differences.append(float(logits[item["IO"][0]] - logits[item["S"][0]]))
    for batch_size in (1, 4, 32):
        found = evals.ioi_eval(the_model, prompts, batch_size=batch_size)
        assert found["Logit Difference"] == pytest.approx(np.mean(differences), abs=1e-5)
        assert found["Accuracy"] == pytest.approx(np.mean(np.array(differences) > 0))


def test_names_of_several_tokens_are_told_apart_where_they_first_differ():
    the_model = reading()
    prompt, right, wrong = np.array([0, 8, 9, 3, 4, 5]), np.array([3, 4, 5]), np.array([3, 6])
    logits = the_model(prompt[None])[0, 3]
    found = evals.ioi_eval(the_model, [{"prompt": prompt, "IO": right, "S": wrong}])
    assert found["Logit Difference"] == pytest.approx(float(logits[4] - logits[6]), abs=1e-5)


def test_prompts_are_drawn_where_none_are_given():
    the_model = reading()
    prompts = evals.IOIDataset(the_model.tokenizer, num_samples=10, symmetric=True, seed=3)
    assert evals.ioi_eval(the_model, num_samples=10, symmetric=True, seed=3) == evals.ioi_eval(the_model, prompts)
    assert evals.ioi_eval(the_model, num_samples=4) == evals.ioi_eval(the_model, num_samples=4)


# --- multiple choice


class Questions(list):
    def select(self, places):
        return Questions(self[place] for place in places)


def load_questions(path, subject, split):
    assert (path, split) == ("cais/mmlu", "test")
    rng = np.random.default_rng(len(subject))
    words = lambda n: " ".join(rng.choice(WORDS[3:18], n))  # noqa: E731
    return Questions(
        {"question": words(n), "choices": [words(2) for _ in range(4)], "answer": int(rng.integers(4)), "more": 1}
        for n in rng.integers(1, 20, 5)
    )


def test_an_answer_is_the_likeliest_letter(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_questions))
    the_model, subjects = reading(), ["anatomy", "astronomy"]
    questions = evals.make_mmlu_data_loader(subjects, num_samples=2)
    assert len(questions) == 4 and list(questions[0]) == ["question", "choices", "answer", "subject"]
    assert len(evals.make_mmlu_data_loader("anatomy")) == 5 and len(evals.make_mmlu_data_loader()) == 5 * 57
    letters, right = [WORDS.index(letter) for letter in "ABCD"], {subject: [] for subject in subjects}
    for question in questions:
        lines = [f"Question: {question['question']}", "Choices:"]
        lines += [f"{letter}. {text}" for letter, text in zip("ABCD", question["choices"], strict=True)]
        logits = the_model("\n".join([*lines, "Answer:"]))[0, -1]
        right[question["subject"]].append(int(np.argmax(logits[np.array(letters)])) == question["answer"])
    found = evals.mmlu_eval(the_model, subjects=subjects, num_samples=2)
    assert found["num_total"] == 4 and found["num_correct"] == sum(map(sum, right.values()))
    assert found["accuracy"] == pytest.approx(found["num_correct"] / 4)
    assert found["subject_scores"] == {subject: pytest.approx(np.mean(right[subject])) for subject in subjects}
    assert len(evals.MMLU_SUBJECTS) == len(set(evals.MMLU_SUBJECTS)) == 57


def test_the_token_of_a_letter_follows_a_space_if_that_is_one_token():
    pieces = {"A": [5], " A": [6], "B": [7], " B": [1, 7]}
    tokenizer = types.SimpleNamespace(encode=lambda text, add_special_tokens: pieces[text])
    assert [mmlu._letter_token(tokenizer, letter) for letter in "AB"] == [6, 7]


# --- mistakes

MISTAKES = {
    "no batch": Case(lambda: evals.evaluate_on_dataset(reading(), []), ValueError, "no batch to measure a loss on"),
    "prompts without BOS": Case(
        lambda: evals.IOIDataset(Tokenizer(word_tokenizer())), ValueError, "and the tokenizer has none"
    ),
    "names that are the same": Case(
        lambda: evals.ioi_eval(reading(), [{"prompt": [0, 3], "IO": [3], "S": [3, 4]}]), ValueError,
        "the names of a prompt have the same tokens, [3] and [3, 4]",
    ),
    "no prompts": Case(
        lambda: evals.ioi_eval(reading(), num_samples=1, symmetric=True), ValueError, "no prompt to ask; the dataset"
    ),
    "a batch of no prompt": Case(
        lambda: evals.ioi_eval(reading(), [{"prompt": [0, 3], "IO": [3], "S": [4]}], batch_size=0), ValueError,
        "batch_size is 0; wanted how many prompts",
    ),
    "a prompt that ends with something else": Case(
        lambda: evals.ioi_eval(reading(), [{"prompt": [0, 3, 2], "IO": [3], "S": [4]}]), ValueError,
        "a prompt [0, 3, 2] does not end with its indirect object, [3]",
    ),
    "a single token said twice": Case(
        lambda: evals.induction_loss(model("gpt2"), subseq_len=1), ValueError, "subseq_len is 1; wanted at least two"
    ),
    "an unknown subject": Case(
        lambda: evals.make_mmlu_data_loader(["anatomy", "alchemy"]), ValueError, "MMLU has no subject alchemy; it has"
    ),
    "no datasets for questions": Case(
        lambda: without("datasets", lambda: evals.make_mmlu_data_loader("anatomy")), ImportError, "MMLU needs the"
    ),
    "no datasets for a corpus": Case(
        lambda: without("datasets", lambda: evals.make_wiki_data_loader(reading().tokenizer)), ImportError,
        "the corpus 'wiki' needs the package datasets",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_answered_with_what_was_wanted(case):
    case.check()


def test_every_error_is_reached_by_a_case():
    assert unreached((evals, mmlu), MISTAKES.values()) == []
