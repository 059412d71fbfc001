"""Rough measures of a model: its loss on text and on repeated random tokens, and how it names an indirect object.

Axes: b batch, p position, v vocabulary.
"""

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm.auto import tqdm

from jaxlens.analysis.heads import bos_token
from jaxlens.data import Batches, padded, tokenize_and_concatenate
from jaxlens.mmlu import MMLU_SUBJECTS as MMLU_SUBJECTS
from jaxlens.mmlu import make_mmlu_data_loader as make_mmlu_data_loader
from jaxlens.mmlu import mmlu_eval as mmlu_eval
from jaxlens.optional import needed
from jaxlens.tokenizer import Tokenizer

# --- the loss on text

ZOOM_IN = (
    "Many important transition points in the history of science have been moments when science 'zoomed in.' At these "
    "points, we develop a visualization or tool that allows us to see the world in a new level of detail, and a new "
    "field of science develops to study the world through this lens."
)
"""How "Zoom In: An Introduction to Circuits" begins (Olah et al. 2020, distill.pub/2020/circuits/zoom-in, CC BY)."""

CORPORA = {
    "wiki": (("wikitext", "wikitext-2-v1"), "text"),
    "owt": (("stas/openwebtext-10k",), "text"),
    "pile": (("NeelNanda/pile-10k",), "text"),
    "code": (("codeparrot/codeparrot-valid-v2-near-dedup",), "content"),
}
"""What `evaluate` reads: where each corpus is on the Hugging Face hub, and the column of its texts."""


def sanity_check(model: Any) -> Float[Array, ""]:
    """The loss on two sentences of English, in nats: below 5 a model is probably sound, above 7 something is wrong."""
    return model(ZOOM_IN, return_type="loss")


def evaluate_on_dataset(
    model: Any, data_loader: Iterable[Mapping[str, Any]], truncate: int = 100, device: Any = None
) -> float:
    """The mean loss over the first `truncate` batches, each a mapping with "tokens" [b p].

    `device` is taken for TransformerLens's sake; a model runs where its weights are.

    Raises:
        ValueError: there is no batch.
    """
    batches = tqdm(itertools.islice(data_loader, truncate), disable=None)
    losses = [float(model(np.asarray(batch["tokens"]), return_type="loss")) for batch in batches]
    if not losses:
        raise ValueError(f"there is no batch to measure a loss on; truncate is {truncate}")
    return float(np.mean(losses))


def evaluate(model: Any, truncate: int = 100, batch_size: int = 8, tokenizer: Any = None) -> dict[str, float]:
    """The mean loss on each of `CORPORA`, as "wiki_loss" and so on; they are printed too.

    Raises:
        ImportError: the package datasets, which fetches them, is not installed.
    """
    losses = {}
    for name in CORPORA:
        loader = _data_loader(name, model.tokenizer if tokenizer is None else tokenizer, batch_size)
        losses[f"{name}_loss"] = evaluate_on_dataset(model, loader, truncate)
        print(f"{name}: {losses[f'{name}_loss']}")
    return losses


def make_wiki_data_loader(tokenizer: Any, batch_size: int = 8) -> Batches:
    """Batches of Wikipedia articles: WikiText 2 (Merity et al. 2016, arXiv 1609.07843), its training part."""
    return _data_loader("wiki", tokenizer, batch_size)


def make_owt_data_loader(tokenizer: Any, batch_size: int = 8) -> Batches:
    """Batches of ten thousand texts of OpenWebText, a replication of what GPT-2 was trained on."""
    return _data_loader("owt", tokenizer, batch_size)


def make_pile_data_loader(tokenizer: Any, batch_size: int = 8) -> Batches:
    """Batches of the first ten thousand texts of the Pile (Gao et al. 2020, arXiv 2101.00027)."""
    return _data_loader("pile", tokenizer, batch_size)


def make_code_data_loader(tokenizer: Any, batch_size: int = 8) -> Batches:
    """Batches of Python files: the validation part of CodeParrot."""
    return _data_loader("code", tokenizer, batch_size)


def _data_loader(name: str, tokenizer: Any, batch_size: int) -> Batches:
    where, column = CORPORA[name]
    texts = needed("datasets", f"the corpus {name!r}").load_dataset(*where, split="train")
    return Batches(tokenize_and_concatenate(texts, tokenizer, column_name=column), batch_size)


# --- induction


def induction_loss(
    model: Any,
    tokenizer: Any = None,
    batch_size: int = 4,
    subseq_len: int = 384,
    prepend_bos: bool | None = None,
    device: Any = None,
    *,
    seed: int = 0,
) -> Float[Array, ""]:
    """The mean loss on the second half of random tokens said twice: low in a model with induction heads.

    Two times `subseq_len` tokens, from those numbered 100 to 19999 as far as the vocabulary goes; the first is BOS if
    `prepend_bos`, or by default if the model has one. `device` is taken for TransformerLens's sake; a model runs where
    its weights are.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=16))
        >>> induction_loss(model, subseq_len=8).shape
        ()

    Raises:
        ValueError: a BOS token is asked for and there is none, or a single token is repeated, which none can foretell.
    """
    if subseq_len < 2:
        raise ValueError(f"subseq_len is {subseq_len}; wanted at least two tokens, of which the second can be foretold")
    most = min(20000, model.cfg.d_vocab)
    half = np.random.default_rng(seed).integers(min(100, most // 2), most, (batch_size, subseq_len), dtype=np.int32)
    tokens = np.concatenate([half, half], axis=1)
    bos = bos_token(model, prepend_bos, tokenizer)
    if bos is not None:
        tokens[:, 0] = bos
    losses = model(tokens, return_type="loss", loss_per_token=True)
    return jnp.mean(losses[:, subseq_len + 1 :])


# --- indirect objects


class IOIDataset(Sequence):
    """Prompts for naming the indirect object, drawn from templates (Wang et al. 2022, arXiv 2211.00593).

    A template has [A], the indirect object, who is also its last word; [B], the subject; and the names of `nouns` in
    brackets. Each item has "prompt", "IO" and "S", arrays of tokens: the whole sentence and the two names, with a space
    before them. `symmetric` draws pairs of prompts with the names exchanged. With a `seed` the prompts are those that
    TransformerLens draws with it.

    Example:
        >>> from tokenizers import Tokenizer as Backend, models, pre_tokenizers
        >>> words = Backend(models.WordLevel({"<s>": 0, "Ann": 1, "Bo": 2, "met": 3}, unk_token="<s>"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = Tokenizer(words, bos_token="<s>")
        >>> prompts = IOIDataset(tokenizer, ["[B] met [A]"], ["Ann", "Bo"], {}, num_samples=2, symmetric=True, seed=0)
        >>> [(item["prompt"].tolist(), item["IO"].tolist()) for item in prompts]
        [([0, 1, 3, 2], [2]), ([0, 2, 3, 1], [1])]

    Raises:
        ValueError: `prepend_bos` and the tokenizer has no BOS token.
    """

    def __init__(
        self,
        tokenizer: Any,
        templates: list[str] | None = None,
        names: list[str] | None = None,
        nouns: dict[str, list[str]] | None = None,
        num_samples: int = 1000,
        symmetric: bool = False,
        prepend_bos: bool = True,
        seed: int | None = None,
    ):
        self.tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer(tokenizer)
        if prepend_bos and self.tokenizer.bos_token_id is None:
            raise ValueError("prepend_bos=True wants a BOS token, and the tokenizer has none")
        self.prepend_bos = prepend_bos
        self.templates = self.get_default_templates() if templates is None else templates
        self.names = self.get_default_names() if names is None else names
        self.nouns = self.get_default_nouns() if nouns is None else nouns
        self._random = random.Random(seed)
        draws = num_samples // 2 if symmetric else num_samples
        self.samples = [sample for _ in range(draws) for sample in self.get_sample(symmetric)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Int[np.ndarray, " p"]]:
        sample = self.samples[index]
        tokens = {name: self.tokenizer.encode(sample[name]) for name in ("text", "IO", "S")}
        bos = [self.tokenizer.bos_token_id] if self.prepend_bos else []
        tokens = {"prompt": bos + tokens.pop("text"), **tokens}
        return {name: np.array(ids, np.int32) for name, ids in tokens.items()}

    def get_sample(self, symmetric: bool = False) -> list[dict[str, str]]:
        """A newly drawn prompt as text, or with `symmetric` two, the names exchanged in the second."""
        template = self._random.choice(self.templates)
        for noun, choices in self.nouns.items():
            template = template.replace(f"[{noun}]", self._random.choice(choices))
        names = self._random.sample(self.names, 2)
        return [
            {"text": template.replace("[A]", a).replace("[B]", b), "IO": f" {a}", "S": f" {b}"}
            for a, b in ([names, names[::-1]] if symmetric else [names])
        ]

    @staticmethod
    def get_default_names() -> list[str]:
        """The names that prompts are made with."""
        return ["John", "Mary"]

    @staticmethod
    def get_default_templates() -> list[str]:
        """The sentences that prompts are made of."""
        return [
            "[A] and [B] went to the [LOCATION] to buy [OBJECT]. [B] handed the [OBJECT] to [A]",
            "Then, [B] and [A] went to the [LOCATION]. [B] gave the [OBJECT] to [A]",
        ]

    @staticmethod
    def get_default_nouns() -> dict[str, list[str]]:
        """What stands for the other words in brackets."""
        return {"LOCATION": ["store", "market"], "OBJECT": ["milk", "eggs", "bread"]}


def ioi_eval(
    model: Any,
    dataset: Sequence[Mapping[str, Any]] | None = None,
    batch_size: int = 8,
    num_samples: int = 1000,
    tokenizer: Any = None,
    symmetric: bool = False,
    *,
    seed: int = 0,
) -> dict[str, float]:
    """How well a model names the indirect object: the mean "Logit Difference" of the names, and the "Accuracy".

    Each prompt ends with the indirect object; the logits are those that predict the first token in which the names
    differ. Without a `dataset`, `num_samples` prompts of an `IOIDataset` are drawn with `seed`.

    Raises:
        ValueError: there is no prompt, one does not end with its indirect object, its names have the same tokens, or
            batch_size is not positive.
    """
    if dataset is None:
        tokenizer = model.tokenizer if tokenizer is None else tokenizer
        dataset = IOIDataset(tokenizer, num_samples=num_samples, symmetric=symmetric, seed=seed)
    questions = [_question(dataset[i]) for i in range(len(dataset))]
    if not questions:
        raise ValueError(f"there is no prompt to ask; the dataset is empty, num_samples is {num_samples}")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; wanted how many prompts to run at once, 1 or more")
    length = max(len(prompt) for prompt, *_ in questions)
    differences = []
    for first in tqdm(range(0, len(questions), batch_size), disable=None):
        batch = questions[first : first + batch_size]
        batch += batch[:1] * (batch_size - len(batch))  # every batch of one shape: one program
        prompts, places, right, wrong = zip(*batch, strict=True)
        tokens, mask = padded(prompts, length)
        logits = model(tokens, attention_mask=mask)
        differences.append(_differences(logits, np.array(places), np.array(right), np.array(wrong)))
    answers = np.concatenate(differences)[: len(questions)]
    return {"Logit Difference": float(answers.mean()), "Accuracy": float((answers > 0).mean())}


def _question(item: Mapping[str, Any]) -> tuple[np.ndarray, int, int, int]:
    """A prompt, the place whose logits tell the names apart, and there the right token and the wrong one."""
    prompt, right, wrong = (np.asarray(item[name]) for name in ("prompt", "IO", "S"))
    both = min(len(right), len(wrong))
    different = np.flatnonzero(right[:both] != wrong[:both])
    if not len(different):
        raise ValueError(f"the names of a prompt have the same tokens, {right.tolist()} and {wrong.tolist()}")
    place, before = different[0], len(prompt) - len(right)
    if before < 0 or prompt[before + place] != right[place]:
        raise ValueError(f"a prompt {prompt.tolist()} does not end with its indirect object, {right.tolist()}")
    return prompt, before + place - 1, right[place], wrong[place]


@jax.jit
def _differences(logits: Float[Array, "b p v"], places, right, wrong) -> Float[Array, " b"]:
    rows = jnp.arange(len(logits))
    return logits[rows, places, right] - logits[rows, places, wrong]
