"""Tokenized datasets, for training and for the loss on a corpus.

Axes: b row, p position.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxlens.errors import require
from jaxlens.text.tokenizer import Tokenizer

DOCUMENTS_AT_ONCE = 1000
"""The number of documents that are joined before they are cut into rows."""

DATASETS = {
    "openwebtext": "stas/openwebtext-10k", "owt": "stas/openwebtext-10k", "pile": "NeelNanda/pile-10k",
    "c4": "NeelNanda/c4-10k", "code": "NeelNanda/code-10k", "python": "NeelNanda/code-10k",
    "c4_code": "NeelNanda/c4-code-20k", "c4-code": "NeelNanda/c4-code-20k", "wiki": "NeelNanda/wiki-10k",
}  # fmt: skip
"""Small datasets on the Hugging Face hub, by the short names that TransformerLens uses."""


@dataclasses.dataclass(frozen=True, eq=False)
class TokenDataset(Sequence):
    """Rows of tokens. As in a `datasets.Dataset`, an index is the column name "tokens", a row, a slice or a list.

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
        """A copy with the rows in random order."""
        return TokenDataset(np.random.default_rng(seed).permutation(self.tokens))


@dataclasses.dataclass(frozen=True)
class Batches:
    """Batches of `batch_size` rows of a dataset in random order, each a dict with "tokens" [b p].

    All iterations use the same order. Rows that do not fill a batch are dropped.
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
    dataset: Any, tokenizer: Any, streaming: bool = False, max_length: int = 1024, column_name: str = "text",
    add_bos_token: bool = True, num_proc: int | None = 10, set_format: bool = True,
) -> Any:  # fmt: skip
    """Tokenizes documents, joins them with EOS tokens in between, and cuts the result into rows of `max_length` tokens.

    With `add_bos_token`, every row starts with BOS. Documents are joined in groups of a thousand. The last tokens of a
    group are dropped if they do not fill a row. A group with too few tokens for a row gives a single padded row.

    For a `datasets.Dataset` or `IterableDataset`, the result has the same type. It is computed by `num_proc` processes,
    or with `streaming` by a single process. With `set_format`, its rows are numpy arrays; an `IterableDataset` needs
    `set_format=False`. For another iterable, of strings or of dicts with the key `column_name`, the result is a
    `TokenDataset`, or with `streaming` an iterator over its rows.

    Example:
        >>> from tokenizers import Tokenizer as Backend, models, pre_tokenizers
        >>> backend = Backend(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "b": 3}, unk_token="<s>"))
        >>> backend.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = Tokenizer(backend, bos_token="<s>", eos_token="</s>")
        >>> tokenize_and_concatenate(["a b a", "b b"], tokenizer, max_length=4)["tokens"].tolist()
        [[0, 2, 3, 2], [0, 1, 3, 3]]

    Raises:
        ValueError: The tokenizer has no EOS token, or `add_bos_token` is set and the tokenizer has no BOS token.
    """
    tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer(tokenizer)
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token, which separates documents; set tokenizer.eos_token")
    if add_bos_token and tokenizer.bos_token_id is None:
        raise ValueError("the tokenizer has no BOS token; set tokenizer.bos_token or pass add_bos_token=False")

    def rows(texts: list[str]) -> Int[np.ndarray, "b p"]:
        return _rows(texts, tokenizer, max_length, add_bos_token)

    if _is_hugging_face(dataset):
        options = {"batched": True, "batch_size": DOCUMENTS_AT_ONCE, **({} if streaming else {"num_proc": num_proc})}
        columns = list(dataset.features or [column_name])
        tokenized = dataset.map(lambda group: {"tokens": rows(group[column_name])}, remove_columns=columns, **options)
        if set_format:
            tokenized.set_format(type="numpy", columns=["tokens"])
        return tokenized
    texts = iter(document if isinstance(document, str) else document[column_name] for document in dataset)
    groups = iter(lambda: list(islice(texts, DOCUMENTS_AT_ONCE)), [])
    if streaming:
        return ({"tokens": row} for group in groups for row in rows(group))
    return TokenDataset(np.concatenate([np.empty((0, max_length), np.int32), *map(rows, groups)]))


def _rows(texts: list[str], tokenizer: Tokenizer, max_length: int, add_bos_token: bool) -> Int[np.ndarray, "b p"]:
    """The rows of a group of documents."""
    length = max_length - add_bos_token
    tokens: list[int] = []
    for i, text in enumerate(texts):
        tokens += [tokenizer.eos_token_id] * (i > 0) + tokenizer.encode(text)
    tokens += [tokenizer.pad_token_id] * ((length - len(tokens)) * bool(texts))
    rows = np.array(tokens[: len(tokens) // length * length], np.int32).reshape(-1, length)
    return np.pad(rows, ((0, 0), (1, 0)), constant_values=tokenizer.bos_token_id) if add_bos_token else rows


def _is_hugging_face(dataset: Any) -> bool:
    return hasattr(dataset, "map") and hasattr(dataset, "features")


def keep_single_column(dataset: Any, col_name: str) -> Any:
    """Removes all columns except `col_name` from a `datasets.Dataset` or an iterable of dicts."""
    if _is_hugging_face(dataset):
        return dataset.remove_columns([column for column in dataset.features if column != col_name])
    return [{col_name: row[col_name]} for row in dataset]


def get_dataset(dataset_name: str, **kwargs: Any) -> Any:
    """Loads a small text dataset of `DATASETS` from the Hugging Face hub. `kwargs` are passed to `load_dataset`.

    Raises:
        ValueError: `dataset_name` is unknown.
        ImportError: The package datasets is not installed.
    """
    if dataset_name not in DATASETS:
        raise ValueError(f"dataset_name is {dataset_name!r}; expected one of {', '.join(DATASETS)}")
    return require("datasets", "get_dataset").load_dataset(DATASETS[dataset_name], split="train", **kwargs)


def padded(rows: Sequence[Sequence[int]], length: int) -> tuple[Int[np.ndarray, "b p"], Int[np.ndarray, "b p"]]:
    """Rows of tokens padded on the right to a length, and their attention mask.

    Example:
        >>> tokens, mask = padded([[5, 6, 7], [8]], 4)
        >>> tokens.tolist(), mask.tolist()
        ([[5, 6, 7, 0], [8, 0, 0, 0]], [[1, 1, 1, 0], [1, 0, 0, 0]])
    """
    mask = np.arange(length) < np.array([[len(row)] for row in rows])
    tokens = np.zeros((len(rows), length), np.int32)
    tokens[mask] = np.concatenate(rows)
    return tokens, mask.astype(np.int32)
