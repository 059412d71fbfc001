"""Quick evaluations: loss on text, loss on repeated random tokens, and indirect object identification.

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
from tqdm import tqdm

from jaxlens.errors import require
from jaxlens.text.tokenizer import Tokenizer, bos_token_id
from jaxlens.training.data import Batches, padded, tokenize_and_concatenate
from jaxlens.training.mmlu import LETTERS as MMLU_ANSWER_LETTERS  # noqa: F401
from jaxlens.training.mmlu import MMLU_SUBJECTS as MMLU_SUBJECTS
from jaxlens.training.mmlu import make_mmlu_data_loader as make_mmlu_data_loader
from jaxlens.training.mmlu import mmlu_eval as mmlu_eval

# --- the loss on text

ZOOM_IN = (
    "Many important transition points in the history of science have been moments when science 'zoomed in.' At these "
    "points, we develop a visualization or tool that allows us to see the world in a new level of detail, and a new "
    "field of science develops to study the world through this lens."
)
"""The start of "Zoom In: An Introduction to Circuits" (Olah et al. 2020, distill.pub/2020/circuits/zoom-in, CC BY)."""

CORPORA = {
    "wiki": (("wikitext", "wikitext-2-v1"), "text"), "owt": (("stas/openwebtext-10k",), "text"),
    "pile": (("NeelNanda/pile-10k",), "text"), "code": (("codeparrot/codeparrot-valid-v2-near-dedup",), "content"),
}  # fmt: skip
"""The corpora of `evaluate`: the arguments of `datasets.load_dataset`, and the column that contains the texts."""


DATASET_NAMES = list(CORPORA)


def sanity_check(model: Any) -> Float[Array, ""]:
    """The loss on two English sentences, in nats. Usually below 5 for a working model, above 7 for a broken model."""
    return model(ZOOM_IN, return_type="loss")


def evaluate_on_dataset(
    model: Any, data_loader: Iterable[Mapping[str, Any]], truncate: int = 100, device: Any = None
) -> float:
    """The mean loss over the first `truncate` batches, each a mapping with "tokens" [b p]. `device` is ignored.

    Raises:
        ValueError: There are no batches.
    """
    batches = tqdm(itertools.islice(data_loader, truncate), disable=None)
    losses = [float(model(np.asarray(batch["tokens"]), return_type="loss")) for batch in batches]
    if not losses:
        raise ValueError(f"the data loader gives no batches for truncate={truncate}; expected at least one")
    return float(np.mean(losses))


def evaluate(model: Any, truncate: int = 100, batch_size: int = 8, tokenizer: Any = None) -> dict[str, float]:
    """The mean loss on each corpus of `CORPORA`, under keys such as "wiki_loss". Also prints the losses.

    Raises:
        ImportError: The package datasets, which downloads the corpora, is not installed.
    """
    losses = {}
    for name in CORPORA:
        loader = _data_loader(name, model.tokenizer if tokenizer is None else tokenizer, batch_size)
        losses[f"{name}_loss"] = evaluate_on_dataset(model, loader, truncate)
        print(f"{name}: {losses[f'{name}_loss']}")
    return losses


def make_wiki_data_loader(tokenizer: Any, batch_size: int = 8) -> Batches:
    """Batches of Wikipedia articles: the training split of WikiText-2 (Merity et al. 2016, arXiv 1609.07843)."""
    return _data_loader("wiki", tokenizer, batch_size)


def make_owt_data_loader(tokenizer: Any, batch_size: int = 8) -> Batches:
    """Batches of ten thousand texts of OpenWebText, a reproduction of GPT-2's training data."""
    return _data_loader("owt", tokenizer, batch_size)


def make_pile_data_loader(tokenizer: Any, batch_size: int = 8) -> Batches:
    """Batches of the first ten thousand texts of the Pile (Gao et al. 2020, arXiv 2101.00027)."""
    return _data_loader("pile", tokenizer, batch_size)


def make_code_data_loader(tokenizer: Any, batch_size: int = 8) -> Batches:
    """Batches of Python files: the validation split of CodeParrot."""
    return _data_loader("code", tokenizer, batch_size)


DATASET_LOADERS = [make_wiki_data_loader, make_owt_data_loader, make_pile_data_loader, make_code_data_loader]
"""The functions that load the corpora of `DATASET_NAMES`."""


def _data_loader(name: str, tokenizer: Any, batch_size: int) -> Batches:
    arguments, column = CORPORA[name]
    texts = require("datasets", f"the corpus {name!r}").load_dataset(*arguments, split="train")
    return Batches(tokenize_and_concatenate(texts, tokenizer, column_name=column), batch_size)


# --- induction


def induction_loss(
    model: Any, tokenizer: Any = None, batch_size: int = 4, subseq_len: int = 384, prepend_bos: bool | None = None,
    device: Any = None, *, seed: int = 0,
) -> Float[Array, ""]:  # fmt: skip
    """The mean loss on the second half of a repeated random sequence. It is low for a model with induction heads.

    A sequence is `subseq_len` random token ids, followed by the same ids. Ids range from 100 to 19999, or to the end of
    a smaller vocabulary. With `prepend_bos`, BOS replaces the first token. The default is that of the model and the
    tokenizer. `device` is ignored.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=16))
        >>> induction_loss(model, subseq_len=8).shape
        ()

    Raises:
        ValueError: `prepend_bos` is True and there is no BOS token, or `subseq_len` is less than 2.
    """
    if subseq_len < 2:
        raise ValueError(f"subseq_len is {subseq_len}; expected 2 or more tokens to repeat")
    end = min(20000, model.cfg.d_vocab)
    half = np.random.default_rng(seed).integers(min(100, end // 2), end, (batch_size, subseq_len), dtype=np.int32)
    tokens = np.concatenate([half, half], axis=1)
    bos = bos_token_id(model.cfg, model.tokenizer if tokenizer is None else tokenizer, prepend_bos)
    if bos is not None:
        tokens[:, 0] = bos
    losses = model(tokens, return_type="loss", loss_per_token=True)
    return jnp.mean(losses[:, subseq_len + 1 :])


# --- indirect object identification


class IOIDataset(Sequence):
    """Prompts for indirect object identification, drawn from templates (Wang et al. 2022, arXiv 2211.00593).

    A template contains the placeholders [A] for the indirect object, [B] for the subject, and the keys of `nouns` in
    brackets. It must end with [A]. Each item is a dict of token arrays: "prompt" is the whole sentence, "IO" and "S"
    are the two names with a leading space. With `symmetric`, prompts come in pairs with exchanged names. A `seed` gives
    the same prompts as in TransformerLens.

    Example:
        >>> from tokenizers import Tokenizer as Backend, models, pre_tokenizers
        >>> words = Backend(models.WordLevel({"<s>": 0, "Ann": 1, "Bo": 2, "met": 3}, unk_token="<s>"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = Tokenizer(words, bos_token="<s>")
        >>> prompts = IOIDataset(tokenizer, ["[B] met [A]"], ["Ann", "Bo"], {}, num_samples=2, symmetric=True, seed=0)
        >>> [(item["prompt"].tolist(), item["IO"].tolist()) for item in prompts]
        [([0, 1, 3, 2], [2]), ([0, 2, 3, 1], [1])]

    Raises:
        ValueError: `prepend_bos` is True and the tokenizer has no BOS token.
    """

    def __init__(
        self, tokenizer: Any, templates: list[str] | None = None, names: list[str] | None = None,
        nouns: dict[str, list[str]] | None = None, num_samples: int = 1000, symmetric: bool = False,
        prepend_bos: bool = True, seed: int | None = None,
    ):  # fmt: skip
        self.tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer(tokenizer)
        if prepend_bos and self.tokenizer.bos_token_id is None:
            raise ValueError("prepend_bos=True needs a BOS token; set tokenizer.bos_token or pass prepend_bos=False")
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
        """A new random prompt as text, or with `symmetric` two prompts with exchanged names."""
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
        """The default names."""
        return ["John", "Mary"]

    @staticmethod
    def get_default_templates() -> list[str]:
        """The default templates."""
        return [
            "[A] and [B] went to the [LOCATION] to buy [OBJECT]. [B] handed the [OBJECT] to [A]",
            "Then, [B] and [A] went to the [LOCATION]. [B] gave the [OBJECT] to [A]",
        ]

    @staticmethod
    def get_default_nouns() -> dict[str, list[str]]:
        """The default words for the placeholders of nouns."""
        return {"LOCATION": ["store", "market"], "OBJECT": ["milk", "eggs", "bread"]}


def ioi_eval(
    model: Any, dataset: Sequence[Mapping[str, Any]] | None = None, batch_size: int = 8, num_samples: int = 1000,
    tokenizer: Any = None, symmetric: bool = False, *, seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """The mean "Logit Difference" of indirect object and subject, and "Accuracy", the share of positive differences.

    Each prompt ends with the indirect object. The logits are those that predict the first token that differs between
    the two names. Without a `dataset`, an `IOIDataset` of `num_samples` prompts is drawn with `seed`.

    Raises:
        ValueError: The dataset is empty, a prompt does not end with its indirect object, no token differs between the
            two names, or `batch_size` is not positive.
    """
    if dataset is None:
        tokenizer = model.tokenizer if tokenizer is None else tokenizer
        dataset = IOIDataset(tokenizer, num_samples=num_samples, symmetric=symmetric, seed=seed)
    examples = [_example(dataset[i]) for i in range(len(dataset))]
    if not examples:
        raise ValueError(f"the dataset is empty (num_samples is {num_samples}); expected at least one prompt")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
    length = max(len(prompt) for prompt, *_ in examples)
    differences = []
    for first in tqdm(range(0, len(examples), batch_size), disable=None):
        batch = examples[first : first + batch_size]
        batch += batch[:1] * (batch_size - len(batch))  # equal shapes, so that the model is compiled once
        prompts, positions, right, wrong = zip(*batch, strict=True)
        tokens, mask = padded(prompts, length)
        logits = model(tokens, attention_mask=mask)
        differences.append(_logit_differences(logits, np.array(positions), np.array(right), np.array(wrong)))
    values = np.concatenate(differences)[: len(examples)]
    return {"Logit Difference": float(values.mean()), "Accuracy": float((values > 0).mean())}


def _example(item: Mapping[str, Any]) -> tuple[np.ndarray, int, int, int]:
    """A prompt, the position that predicts the first token that differs between the names, and these two tokens."""
    prompt, right, wrong = (np.asarray(item[name]) for name in ("prompt", "IO", "S"))
    shorter = min(len(right), len(wrong))
    different = np.flatnonzero(right[:shorter] != wrong[:shorter])
    if not len(different):
        raise ValueError(f"IO is {right.tolist()} and S is {wrong.tolist()}; expected names that differ in a token")
    offset, start = different[0], len(prompt) - len(right)
    if start < 0 or prompt[start + offset] != right[offset]:
        raise ValueError(f"prompt is {prompt.tolist()}; expected it to end with the indirect object {right.tolist()}")
    return prompt, start + offset - 1, right[offset], wrong[offset]


@jax.jit
def _logit_differences(logits: Float[Array, "b p v"], positions, right, wrong) -> Float[Array, " b"]:
    rows = jnp.arange(len(logits))
    return logits[rows, positions, right] - logits[rows, positions, wrong]
