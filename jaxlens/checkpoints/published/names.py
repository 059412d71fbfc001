"""TransformerLens's names of published models: "gpt2-small" stands for the Hugging Face repository "gpt2".

Like TransformerLens, the functions ignore the case of a name.
"""

import difflib
import functools

from jaxlens.errors import CheckpointError

UNREADABLE = {
    "google-bert/": "BERT is an encoder, and jaxlens runs decoder-only transformers",
    "google-t5/": "T5 has an encoder, and jaxlens runs decoder-only transformers",
    "facebook/hubert": "HuBERT encodes audio, and jaxlens runs decoder-only transformers of text",
    "facebook/wav2vec2": "wav2vec 2.0 encodes audio, and jaxlens runs decoder-only transformers of text",
    "bigcode/santacoder": 'its repository needs its own code; load "bigcode/gpt_bigcode-santacoder", the same weights',
    "llama-": "it was never a Hugging Face repository; pass the folder of its converted weights, or hf_model=",
}
"""The models of the table that cannot be loaded, by the first characters of their repository: why, and what to do."""


@functools.cache
def aliases() -> dict[str, list[str]]:
    """The short names of every repository, the default first. Some repositories have none.

    Example:
        >>> aliases()["EleutherAI/gpt-neo-125M"]
        ['gpt-neo-125M', 'gpt-neo-small', 'neo-small', 'neo']
    """
    from jaxlens.checkpoints.published.table import TABLE  # not needed to open a local folder

    listed = {}
    for line in TABLE.replace("\n  ", " ").split("\n")[1:-1]:
        repository, *names = line.split()
        own = repository.rpartition("/")[2]
        listed[repository] = [{"=": own, "~": own.lower()}.get(name, name) for name in names]
    return listed


@functools.cache
def _repositories() -> dict[str, str]:
    """The repository of every name in lower case."""
    return {name.lower(): repository for repository, names in aliases().items() for name in (*names, repository)}


def official_name(name: str) -> str | None:
    """The repository that a name stands for, or None if the table does not contain the name.

    Example:
        >>> official_name("GPT2-small"), official_name("eleutherai/pythia-19m"), official_name("my/model")
        ('gpt2', 'EleutherAI/pythia-70m', None)
    """
    return _repositories().get(name.lower())


def repository_of(name: str) -> str:
    """The repository that a name stands for. A name that is not in the table stands for itself.

    Raises:
        CheckpointError: jaxlens cannot load the model. The message says why.
    """
    repository = official_name(name) or name
    for start, why in UNREADABLE.items():
        if repository.startswith(start) and official_name(repository):
            raise CheckpointError(f"{name!r} stands for {repository}, which jaxlens does not load: {why}")
    return repository


def similar_names(name: str, count: int = 3) -> list[str]:
    """Names of the table that are similar to `name`, the most similar first.

    Example:
        >>> similar_names("pythia-71m")[0]
        'pythia-70m'
    """
    spelled = {known.lower(): known for repository, names in aliases().items() for known in (repository, *names)}
    return [spelled[known] for known in difflib.get_close_matches(name.lower(), spelled, n=count, cutoff=0.75)]
