"""A model for lm-evaluation-harness (the package `lm_eval`), named "jaxlens" there.

lm_eval finds no models of other packages, so its command line runs as `python -m jaxlens.batch.lm_eval`, with the
arguments of `lm_eval`:

    python -m jaxlens.batch.lm_eval --model jaxlens --model_args pretrained=gpt2 --tasks hellaswag

In Python, importing this module registers the model. Axes: b batch, p position.
"""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxlens.batch.scores import token_scores
from jaxlens.batch.stream import BATCH_TOKENS
from jaxlens.errors import require
from jaxlens.hooks.plan import HookSpec
from jaxlens.model.generation.options import eos_tokens
from jaxlens.model.generation.stream import text_of
from jaxlens.model.request import required_tokenizer
from jaxlens.model.transformer import HookedTransformer

require("lm_eval", "jaxlens.batch.lm_eval")
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

MAX_NEW_TOKENS = 256
"""The length of a generated text if a task does not say it, as in lm_eval's `hf` model."""

DEFAULT_DEVICE = "cuda:0"
"""The device that the command line of lm_eval asks for if its user names none, on a computer without GPUs too."""

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""The options of a task's `generation_kwargs` that `model.generate` has too."""

NO_EFFECT = (("num_beams", 1), ("top_k", 0), ("top_p", 1), ("use_cache", True))
"""Options with values that change nothing."""


class JaxLensLM(TemplateLM):
    """A HookedTransformer as a model of lm_eval, which scores and generates like lm_eval's `hf` model.

    Texts are tokenized by the tokenizer's own rule for BOS, or with `add_bos_token` always or never with BOS. Contexts
    that are too long lose their first tokens.

    Args:
        pretrained: A model, or a name for `HookedTransformer.from_pretrained_no_processing`, with its options, such as
            `dtype="bfloat16"`, `revision` or `adapter`.
        hooks: Hooks `(name, fn)` of every run, to evaluate an intervention.
        batch_size: The number of prompts that are continued at a time; "auto" is 16.
        batch_tokens: At most so many tokens are scored at a time.
        max_length: The longest input in tokens (default: n_ctx).
        prefix_token_id: The token before a text without a context (default: BOS, or EOS if there is no BOS).
        device: The device of the weights. "cuda:0", which the command line of lm_eval always asks for by default, is
            JAX's default device here.
        max_batch_size: Has no effect, because no batch size is searched for.

    Raises:
        ValueError: The model has no tokenizer, or an argument is out of range.

    Example:
        >>> import lm_eval, jaxlens
        >>> from jaxlens.batch.lm_eval import JaxLensLM
        >>> model = jaxlens.HookedTransformer.from_pretrained_no_processing("gpt2")  # doctest: +SKIP
        >>> lm = JaxLensLM(model, hooks=[("blocks.5.hook_mlp_out", lambda value, hook: 0 * value)])  # doctest: +SKIP
        >>> lm_eval.simple_evaluate(lm, tasks=["lambada_openai"])["results"]  # doctest: +SKIP
    """

    def __init__(
        self, pretrained: str | HookedTransformer, *, hooks: list[HookSpec] | None = None, batch_size: int | str = 1,
        batch_tokens: int = BATCH_TOKENS, max_length: int | None = None, add_bos_token: bool | None = None,
        prefix_token_id: int | None = None, device: str | None = None, max_batch_size: int | None = None,
        **loading: Any,
    ):  # fmt: skip
        super().__init__()
        loading |= {} if device in (None, DEFAULT_DEVICE) else {"device": device}
        if isinstance(pretrained, str):
            pretrained = HookedTransformer.from_pretrained_no_processing(pretrained, **loading)
        elif loading:
            raise TypeError(f"{', '.join(loading)}: these arguments are for a name, and pretrained is a model already")
        self.model, self.tokenizer = pretrained, required_tokenizer(pretrained.tokenizer)
        self.hooks, self.batch_tokens, self.add_bos_token = hooks, batch_tokens, add_bos_token
        n_ctx = pretrained.cfg.n_ctx
        self.max_length = n_ctx if max_length is None else max_length
        if not 1 <= self.max_length <= n_ctx:
            raise ValueError(f"max_length is {max_length}; expected 1 to {n_ctx}, the n_ctx of the model")
        self.batch_size = _batch_size(batch_size)
        self._prefix = _prefix_token(self.tokenizer, prefix_token_id)

    @property
    def eot_token_id(self) -> int | None:
        """The id of the EOS token."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context."""
        return self._prefix

    @property
    def tokenizer_name(self) -> str:
        """The name of the tokenizer, in the names of lm_eval's caches."""
        return (self.tokenizer.name_or_path or self.model.cfg.model_name or "").replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """The tokens of a text. By default a text that begins with the prefix token gets no other BOS."""
        if add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
            add_special_tokens = False
        return self._encoded(string, add_special_tokens)

    def _encoded(self, string: str, add_special_tokens: bool | None) -> list[int]:
        """The tokens of a text, with the special tokens of the tokenizer's own rule if that is True or None."""
        if add_special_tokens is not False and self.add_bos_token is None:
            return self.tokenizer.encode(string, add_special_tokens=True)
        adds_bos = self.add_bos_token if add_special_tokens is None else add_special_tokens
        return self.tokenizer.rows([string], prepend_bos=adds_bos)[0]

    # --- scores

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        """The log-probability of each continuation, and whether it is the likeliest one token by token."""
        contexts, continuations = ([request[i] for request in requests] for i in (1, 2))
        scores = token_scores(
            self.model, continuations, contexts, hooks=self.hooks, batch_tokens=self.batch_tokens,
            max_length=self.max_length + 1, progress=not disable_tqdm,
        )  # fmt: skip
        results = []
        for (texts, _, _), each in zip(requests, scores, strict=True):
            results.append((float(each.log_probs.sum(dtype=np.float64)), bool(each.is_greedy.all())))
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, results[-1])
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text, in windows of `max_length` tokens if it is longer."""
        texts = [request.args[0] for request in requests]
        windows = [list(self._windows(text)) for text in texts]
        scores = iter(self._loglikelihood_tokens(list(itertools.chain(*windows)), disable_tqdm))
        totals = [sum((next(scores)[0] for _ in of_text), 0.0) for of_text in windows]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def _windows(self, text: str) -> Iterator[tuple[None, list[int], list[int]]]:
        """The windows of a text: tokens that are only read, and tokens that are scored."""
        pairs = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1)
        return ((None, *make_disjoint_window(pair)) for pair in pairs)

    # --- text

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text after each context, until a stop string or EOS. Contexts with equal options run together."""
        from tqdm import tqdm

        texts: dict[int, str] = {}
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        with tqdm(total=len(requests), desc="generating", disable=disable_tqdm) as progress:
            for group in groups.values():
                settings = _Settings(requests[group[0]].args[1], self)
                prompts = {number: self._prompt(requests[number].args[0], settings.max_new_tokens) for number in group}
                ordered = sorted(group, key=lambda number: -len(prompts[number]))  # the slowest and largest first
                for first in range(0, len(ordered), self.batch_size):
                    chosen = ordered[first : first + self.batch_size]
                    found = self._continued([prompts[number] for number in chosen], settings)
                    for number, text in zip(chosen, found, strict=True):
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                        texts[number] = text
                    progress.update(len(chosen))
        return [texts[number] for number in range(len(requests))]

    def _prompt(self, context: str, max_new_tokens: int) -> list[int]:
        """The tokens of a context, of which the first are dropped if there is no room for the new text."""
        room = self.max_length - max_new_tokens
        if room < 1:
            problem = f"max_gen_toks is {max_new_tokens}, which leaves no room for a prompt in {self.max_length} tokens"
            raise ValueError(f"{problem}; ask for a shorter text, as with --gen_kwargs max_gen_toks=32")
        bos = self.tokenizer.bos_token
        tokens = self._encoded(context, False if bos is not None and context.startswith(bos) else None)
        if len(tokens) > room:
            warnings.warn(f"a prompt of {len(tokens)} tokens is cut to its last {room}", UserWarning, stacklevel=2)
        return tokens[-room:] or [self.prefix_token_id]

    def _continued(self, prompts: list[list[int]], settings: "_Settings") -> list[str]:
        """The new text of each prompt, without what follows a stop string."""
        longest = max(map(len, prompts))
        tokens, mask = _left_padded(prompts, longest)
        rows = self.model.generate(
            tokens, settings.max_new_tokens, attention_mask=mask, return_type="tokens", verbose=False,
            stop_at_eos=bool(eos_tokens(self.model)), stop_strings=[each for each in settings.until if each] or None,
            fwd_hooks=self.hooks, **settings.sampling,
        )  # fmt: skip
        new = [text_of(self.tokenizer, row[longest:], skip_special_tokens=True) for row in np.asarray(rows)]
        return [postprocess_generated_text(text, settings.until, None) for text in new]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text, formatted with the tokenizer's chat template."""
        return self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )  # fmt: skip


class _Settings:
    """The `generation_kwargs` of a task as arguments of `model.generate`."""

    def __init__(self, given: dict[str, Any], lm: JaxLensLM):
        options = normalize_gen_kwargs(given, MAX_NEW_TOKENS)
        self.max_new_tokens = options.pop("max_gen_toks")
        eos = None if lm.eot_token_id is None else lm.tokenizer.decode([lm.eot_token_id])
        self.until = handle_stop_sequences(options.pop("until"), eos)
        options = {name: value for name, value in options.items() if (name, value) not in NO_EFFECT}
        do_sample = options.pop("do_sample")
        if unknown := sorted(options.keys() - {*SAMPLING}):
            expected = ", ".join(("until", "max_gen_toks", "do_sample", *SAMPLING))
            raise ValueError(f"generation_kwargs has {', '.join(unknown)}; jaxlens knows {expected}")
        random = SAMPLING if do_sample else ("repetition_penalty",)  # a greedy choice has no other options
        self.sampling = {"do_sample": do_sample} | {name: value for name, value in options.items() if name in random}


def _left_padded(rows: list[list[int]], length: int) -> tuple[Int[np.ndarray, "b p"], Int[np.ndarray, "b p"]]:
    """Rows of tokens as an array, and its attention mask."""
    tokens = np.array([[0] * (length - len(row)) + row for row in rows], np.int32)
    return tokens, np.array([[0] * (length - len(row)) + [1] * len(row) for row in rows], np.int32)


def _batch_size(given: int | str) -> int:
    size = 16 if str(given).split(":")[0] == "auto" else given
    if not str(size).isdecimal() or int(size) < 1:
        raise ValueError(f'batch_size is {given!r}; expected a positive integer or "auto"')
    return int(size)


def _prefix_token(tokenizer: Any, given: int | None) -> int:
    chosen = next((each for each in (given, tokenizer.bos_token_id, tokenizer.eos_token_id) if each is not None), None)
    if chosen is None:
        raise ValueError("the tokenizer has neither BOS nor EOS, which texts without a context need; set one of them")
    return chosen


if "jaxlens" not in model_registry:
    model_registry.register("jaxlens", target="jaxlens.batch.lm_eval:JaxLensLM")

if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    from jaxlens._jax import use_compilation_cache

    use_compilation_cache()
    cli_evaluate()
