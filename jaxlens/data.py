"""Texts as rows of tokens: for training and for measuring a loss on a corpus.

Axes: b row, p position.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxlens.optional import needed
from jaxlens.tokenizer import Tokenizer

DOCUMENTS_AT_ONCE = 1000
"""How many documents are joined before they are cut into rows; what is left over of them is dropped."""

DATASETS = {
    "openwebtext": "stas/openwebtext-10k", "owt": "stas/openwebtext-10k", "pile": "NeelNanda/pile-10k",
    "c4": "NeelNanda/c4-10k", "code": "NeelNanda/code-10k", "python": "NeelNanda/code-10k",
    "c4_code": "NeelNanda/c4-code-20k", "c4-code": "NeelNanda/c4-code-20k", "wiki": "NeelNanda/wiki-10k",
}  # fmt: skip
"""Small datasets by the short names that TransformerLens gave them."""


@dataclasses.dataclass(frozen=True)
class TokenDataset(Sequence):
    """Rows of tokens, read as a `datasets.Dataset` of one column is: by column, by row, or by a slice or list of rows.

    Example:
        >>> rows = TokenDataset(np.arange(6).reshape(3, 2))
        >>> len(rows), rows[1], rows[:2]["tokens"].shape, rows["tokens"].shape
        (3, {'tokens': array([2, 3])}, (2, 2), (3, 2))
    """

    tokens: Int[np.ndarray, "b p"]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            return {"tokens": self.tokens}[index]
        return {"tokens": self.tokens[index]}

    def shuffle(self, seed: int | None = None) -> "TokenDataset":
        """The same rows in another order."""
        return TokenDataset(np.random.default_rng(seed).permutation(self.tokens))


@dataclasses.dataclass(frozen=True)
class Batches:
    """The rows of a dataset in random order, `batch_size` at a time, each a dict with "tokens" [b p].

    What does not fill a batch at the end is left out. Every pass over it goes in the same order.
    """

    dataset: Any
    batch_size: int
    seed: int = 0

    def __len__(self) -> int:
        return len(self.dataset) // self.batch_size

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        order = np.random.default_rng(self.seed).permutation(len(self.dataset))
        for first in range(0, len(self) * self.batch_size, self.batch_size):
            yield self.dataset[order[first : first + self.batch_size]]


def tokenize_and_concatenate(
    dataset: Any,
    tokenizer: Any,
    streaming: bool = False,
    max_length: int = 1024,
    column_name: str = "text",
    add_bos_token: bool = True,
    num_proc: int | None = 10,
    set_format: bool = True,
) -> Any:
    """Documents as rows of `max_length` tokens: joined, with EOS between them, and cut; nothing is padded or truncated.

    Every row begins with BOS if `add_bos_token`. Documents are joined a thousand at a time, and what does not fill a
    row at the end of these is dropped; if they have not tokens enough for a single row, that is padded.

    `dataset` is a `datasets.Dataset` or `IterableDataset`, and then so is the result, with `num_proc` processes unless
    `streaming`, and numpy rows if `set_format` (which an IterableDataset does not have); or any iterable of strings, or
    of dicts with `column_name`, and then the result is a `TokenDataset`, or with `streaming` an iterator of its rows.

    Example:
        >>> from tokenizers import Tokenizer as Backend, models, pre_tokenizers
        >>> backend = Backend(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "b": 3}, unk_token="<s>"))
        >>> backend.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = Tokenizer(backend, bos_token="<s>", eos_token="</s>")
        >>> tokenize_and_concatenate(["a b a", "b b"], tokenizer, max_length=4)["tokens"].tolist()
        [[0, 2, 3, 2], [0, 1, 3, 3]]

    Raises:
        ValueError: the tokenizer has no EOS token, or no BOS token and one is wanted.
    """
    tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer(tokenizer)
    for role in ("eos", "bos") if add_bos_token else ("eos",):
        if getattr(tokenizer, f"{role}_token_id") is None:
            raise ValueError(f"the tokenizer has no {role.upper()} token to put between or before documents")

    def rows(texts: list[str]) -> Int[np.ndarray, "b p"]:
        return _rows(texts, tokenizer, max_length, add_bos_token)

    if _is_hugging_face(dataset):
        how = {"batched": True, "batch_size": DOCUMENTS_AT_ONCE, **({} if streaming else {"num_proc": num_proc})}
        columns = list(dataset.features or [column_name])
        rows_of = dataset.map(lambda group: {"tokens": rows(group[column_name])}, remove_columns=columns, **how)
        if set_format:
            rows_of.set_format(type="numpy", columns=["tokens"])
        return rows_of
    texts = iter(document if isinstance(document, str) else document[column_name] for document in dataset)
    groups = iter(lambda: list(islice(texts, DOCUMENTS_AT_ONCE)), [])
    if streaming:
        return ({"tokens": row} for group in groups for row in rows(group))
    return TokenDataset(np.concatenate([np.empty((0, max_length), np.int32), *map(rows, groups)]))


def _rows(texts: list[str], tokenizer: Tokenizer, max_length: int, add_bos_token: bool) -> Int[np.ndarray, "b p"]:
    length = max_length - add_bos_token
    tokens: list[int] = []
    for n, text in enumerate(texts):
        tokens += [tokenizer.eos_token_id] * (n > 0) + tokenizer.encode(text)
    tokens += [tokenizer.pad_token_id] * ((length - len(tokens)) * bool(texts))
    rows = np.array(tokens[: len(tokens) // length * length], np.int32).reshape(-1, length)
    return np.pad(rows, ((0, 0), (1, 0)), constant_values=tokenizer.bos_token_id) if add_bos_token else rows


def _is_hugging_face(dataset: Any) -> bool:
    return hasattr(dataset, "map") and hasattr(dataset, "features")


def keep_single_column(dataset: Any, col_name: str) -> Any:
    """A dataset (a `datasets.Dataset`, or an iterable of dicts) without its other columns."""
    if _is_hugging_face(dataset):
        return dataset.remove_columns([column for column in dataset.features if column != col_name])
    return [{col_name: row[col_name]} for row in dataset]


def get_dataset(dataset_name: str, **kwargs: Any) -> Any:
    """A small text dataset by its short name (`DATASETS`), from the Hugging Face hub; `kwargs` go to `load_dataset`.

    Raises:
        ValueError: there is no such name.
        ImportError: the package datasets is not installed.
    """
    if dataset_name not in DATASETS:
        raise ValueError(f"there is no dataset {dataset_name!r}; there are {', '.join(DATASETS)}")
    return needed("datasets", "get_dataset").load_dataset(DATASETS[dataset_name], split="train", **kwargs)


def padded(rows: Sequence[Sequence[int]], length: int) -> tuple[Int[np.ndarray, "b p"], Int[np.ndarray, "b p"]]:
    """Rows of tokens filled up to a length on the right, and the mask that says what is real.

    Example:
        >>> tokens, mask = padded([[5, 6, 7], [8]], 4)
        >>> tokens.tolist(), mask.tolist()
        ([[5, 6, 7, 0], [8, 0, 0, 0]], [[1, 1, 1, 0], [1, 0, 0, 0]])
    """
    mask = np.arange(length) < np.array([[len(row)] for row in rows])
    tokens = np.zeros((len(rows), length), np.int32)
    tokens[mask] = np.concatenate(rows)
    return tokens, mask.astype(np.int32)
