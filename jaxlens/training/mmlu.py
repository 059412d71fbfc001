"""MMLU: multiple-choice questions on 57 subjects (Hendrycks et al. 2020, arXiv 2009.03300)."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxlens.errors import require
from jaxlens.training.data import padded

MMLU_SUBJECTS = (
    "abstract_algebra", "anatomy", "astronomy", "business_ethics", "clinical_knowledge", "college_biology",
    "college_chemistry", "college_computer_science", "college_mathematics", "college_medicine", "college_physics",
    "computer_security", "conceptual_physics", "econometrics", "electrical_engineering", "elementary_mathematics",
    "formal_logic", "global_facts", "high_school_biology", "high_school_chemistry", "high_school_computer_science",
    "high_school_european_history", "high_school_geography", "high_school_government_and_politics",
    "high_school_macroeconomics", "high_school_mathematics", "high_school_microeconomics", "high_school_physics",
    "high_school_psychology", "high_school_statistics", "high_school_us_history", "high_school_world_history",
    "human_aging", "human_sexuality", "international_law", "jurisprudence", "logical_fallacies", "machine_learning",
    "management", "marketing", "medical_genetics", "miscellaneous", "moral_disputes", "moral_scenarios", "nutrition",
    "philosophy", "prehistory", "professional_accounting", "professional_law", "professional_medicine",
    "professional_psychology", "public_relations", "security_studies", "sociology", "us_foreign_policy", "virology",
    "world_religions",
)  # fmt: skip
LETTERS = ["A", "B", "C", "D"]
LENGTH_STEP = 64
"""Prompts are padded to multiples of this number of tokens, so that the model is compiled for few lengths."""


def make_mmlu_data_loader(
    subjects: str | Iterable[str] | None = None, split: str = "test", num_samples: int | None = None
) -> list[dict[str, Any]]:
    """Downloads questions on a subject, several subjects or all subjects, at most `num_samples` per subject.

    A question is a dict with "question", "choices" (four texts), "answer" (index of the right choice) and "subject".

    Raises:
        ValueError: A subject is unknown.
        ImportError: The package datasets, which downloads the questions, is not installed.
    """
    chosen = MMLU_SUBJECTS if subjects is None else [subjects] if isinstance(subjects, str) else list(subjects)
    if unknown := sorted(set(chosen) - set(MMLU_SUBJECTS)):
        raise ValueError(f"subjects contains {', '.join(unknown)}; expected some of {', '.join(MMLU_SUBJECTS)}")
    load = require("datasets", "MMLU").load_dataset
    questions = []
    for subject in chosen:
        rows = load("cais/mmlu", subject, split=split)
        rows = rows.select(range(len(rows) if num_samples is None else min(num_samples, len(rows))))
        questions += [
            {name: row[name] for name in ("question", "choices", "answer")} | {"subject": subject} for row in rows
        ]
    return questions


def mmlu_eval(
    model: Any, tokenizer: Any = None, subjects: str | Iterable[str] | None = None, split: str = "test",
    num_samples: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Zero-shot accuracy on MMLU. The answer of the model is the letter with the largest logit after the question.

    The result has the keys "accuracy", "num_correct", "num_total", and "subject_scores", a dict of accuracies by
    subject. The other arguments are passed to `make_mmlu_data_loader`.
    """
    tokenizer = model.tokenizer if tokenizer is None else tokenizer
    letters = np.array([_letter_token(tokenizer, letter) for letter in LETTERS])
    correct: dict[str, list[bool]] = {}
    for question in tqdm(make_mmlu_data_loader(subjects, split, num_samples), disable=None):
        row = np.asarray(model.to_tokens(_prompt(question), truncate=False))[0]
        length = -(-len(row) // LENGTH_STEP) * LENGTH_STEP
        tokens, mask = padded([row], max(len(row), min(length, model.cfg.n_ctx)))
        logits = np.asarray(model(tokens, attention_mask=mask)[0, len(row) - 1])
        answer = int(np.argmax(logits[letters[: len(question["choices"])]]))
        correct.setdefault(question["subject"], []).append(answer == question["answer"])
    results = [result for answers in correct.values() for result in answers]
    return {
        "accuracy": float(np.mean(results)), "num_correct": sum(results), "num_total": len(results),
        "subject_scores": {subject: float(np.mean(answers)) for subject, answers in correct.items()},
    }  # fmt: skip


def _prompt(question: dict[str, Any]) -> str:
    choices = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, question["choices"], strict=False))
    return f"Question: {question['question']}\nChoices:\n{choices}Answer:"


def _letter_token(tokenizer: Any, letter: str) -> int:
    """The token of a letter with a leading space if that is a single token, otherwise the first token of the letter."""
    with_space = tokenizer.encode(f" {letter}", add_special_tokens=False)
    return with_space[0] if len(with_space) == 1 else tokenizer.encode(letter, add_special_tokens=False)[0]
