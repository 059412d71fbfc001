"""Snippets as TransformerLens users write them, and the two models they run on, in either library.

A snippet is a cell of a file in `tests/snippets/`: it begins with `# %% title` and its value is that of its last
expression, as in a notebook. It is written for TransformerLens; in jaxlens the same text runs with `transformer_lens`
replaced by `jaxlens`. Where torch and JAX spell something differently, a second form follows `# --- jaxlens`. Where
TransformerLens itself is wrong, `# --- definition: reason` is followed by code that says what the value is.

Marks at the end of a title say what a cell is for: `@gpt2` or `@llama` one model only, `@raw` or `@processed` one state
of its weights only; `@in_place` that its first form edits an activation in place, which jaxlens refuses.

This module imports neither torch nor jax: the script that makes the reference numbers uses it where only the former is
installed, the tests where only the latter is needed.
"""

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "snippets"
REFERENCE = Path(__file__).parent / "transformerlens_snippets.npz"
PAGE = Path(__file__).parents[1] / "docs" / "coming_from_transformerlens.md"

# --- the models, in TransformerLens's words

MODELS = {
    "gpt2": {
        "n_layers": 3, "d_model": 18, "n_heads": 3, "d_head": 5, "d_mlp": 22, "d_vocab": 31, "n_ctx": 60,
        "act_fn": "gelu_new", "normalization_type": "LN", "eps": 1e-5, "seed": 3, "device": "cpu",
    },
    "llama": {
        "n_layers": 3, "d_model": 20, "n_heads": 6, "n_key_value_heads": 2, "d_head": 4, "d_mlp": 26, "d_vocab": 31,
        "n_ctx": 60, "act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS", "final_rms": True, "eps": 1e-6,
        "positional_embedding_type": "rotary", "rotary_dim": 4, "seed": 3, "device": "cpu",
    },
}  # fmt: skip

WORDS = (
    "<s>", "<pad>", "?", "When", "ĠJohn", "Ġand", "ĠMary", "Ġwent", "Ġto", "Ġthe", "Ġshops", ",", "Ġgave", "Ġa", "Ġbag",
    "John", "Mary", "Ġhello", "Ġworld", "hello", "Ġin", "Ġthen", "ĠTom", "Then", "Ġstore", "Ġdrink", ".", "Ġhad", "Ġof",
    "ĠParis", "ĠRome",
)  # fmt: skip


def state_dict(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights by TransformerLens's names, all of them: nothing hides behind a zero or a one."""
    cfg = MODELS[name]
    n, d, h, m, v = (cfg[field] for field in ("n_heads", "d_model", "d_head", "d_mlp", "d_vocab"))
    k, rotary = cfg.get("n_key_value_heads", n), cfg.get("positional_embedding_type") == "rotary"
    shapes: dict[str, tuple[int, ...]] = {"embed.W_E": (v, d)}
    shapes |= {} if rotary else {"pos_embed.W_pos": (cfg["n_ctx"], d)}
    grouped = "_" if k < n else ""
    for layer in range(cfg["n_layers"]):
        block = {
            "attn.W_Q": (n, d, h), f"attn.{grouped}W_K": (k, d, h), f"attn.{grouped}W_V": (k, d, h),
            "attn.W_O": (n, h, d), "attn.b_Q": (n, h), f"attn.{grouped}b_K": (k, h), f"attn.{grouped}b_V": (k, h),
            "attn.b_O": (d,), "ln1.w": (d,), "ln2.w": (d,), "mlp.W_in": (d, m), "mlp.b_in": (m,),
            "mlp.W_out": (m, d), "mlp.b_out": (d,),
        }  # fmt: skip
        block |= {"mlp.W_gate": (d, m)} if cfg.get("gated_mlp") else {}
        block |= {} if rotary else {"ln1.b": (d,), "ln2.b": (d,)}
        shapes |= {f"blocks.{layer}.{site}": shape for site, shape in block.items()}
    shapes |= {"ln_final.w": (d,), "unembed.W_U": (d, v), "unembed.b_U": (v,)}
    shapes |= {} if rotary else {"ln_final.b": (d,)}
    rng = np.random.default_rng(seed)
    drawn = {name: rng.normal(size=shape) * 0.35 + name.endswith(".w") for name, shape in sorted(shapes.items())}
    # where TransformerLens adds b_in in a gated MLP no checkpoint has a bias, and jaxlens adds it elsewhere
    no_bias = "mlp.b_in" if cfg.get("gated_mlp") else "none"
    return {name: np.float32(value * (not name.endswith(no_bias))) for name, value in drawn.items()}


def word_tokenizer() -> Any:
    """A `tokenizers` tokenizer of 31 words that keeps their spaces, as GPT-2's does, and puts <s> in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.add_special_tokens(["<s>", "<pad>"])
    return backend


SPECIAL = {"bos_token": "<s>", "eos_token": "<s>", "pad_token": "<pad>", "unk_token": "?"}

TOKENS = np.array([[0, 15, 5, 16, 7, 8, 9], [0, 23, 6, 12, 13, 14, 26]])
CORRUPTED_TOKENS = np.array([[0, 15, 5, 22, 7, 8, 9], [0, 23, 4, 12, 13, 14, 26]])
ANSWERS = np.array([[10, 24], [29, 30]])  # for each prompt, the right token and the wrong one
REPEATED_TOKENS = np.concatenate([[[0], [0]], np.tile(np.random.default_rng(7).integers(3, 31, (2, 8)), 2)], axis=1)

OF_WEIGHTS = ("Running a model", "The residual stream, taken apart", "Weights")
"""The themes for which it matters whether weights are processed; the others see each model in one state."""

GIVEN = """
`model` is the model. `tokens` and `corrupted_tokens` are `[2, 7]`; `answers` is `[2, 2]`, for each prompt the right
next token and the wrong one; `repeated_tokens` is `[2, 17]`: BOS and the same 8 random tokens twice. `logits` and
`cache` are those of `model.run_with_cache(tokens)`. `np`, `einops`, `partial` and `torch`, or `jax` and `jnp`, are
imported.
"""

# --- cells


@dataclasses.dataclass(frozen=True)
class Snippet:
    """One cell: its form for TransformerLens, and for jaxlens if that differs by more than the imports."""

    theme: str
    title: str
    marks: frozenset[str]
    before: str
    own_form: str | None = None
    definition: str | None = None
    reason: str = ""

    @property
    def after(self) -> str:
        """What is run in jaxlens."""
        return self.before.replace("transformer_lens", "jaxlens") if self.own_form is None else self.own_form

    @property
    def where(self) -> list[tuple[str, str]]:
        """The models it is for: (name, "raw" or "processed")."""
        names = [name for name in MODELS if not self.marks & set(MODELS) or name in self.marks]
        if states := sorted(self.marks & {"raw", "processed"}):
            return [(name, state) for name in names for state in states]
        if self.theme in OF_WEIGHTS:
            return [(name, state) for name in names for state in ("raw", "processed")]
        return [(name, {"gpt2": "raw", "llama": "processed"}[name]) for name in names]


def themes() -> dict[str, list[Snippet]]:
    """Every theme, in the order of the page, and its snippets."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        head, *cells = re.split(r"^# %% ", path.read_text("utf-8"), flags=re.M)
        theme = head.removeprefix('"""').split("\n")[0].strip('"')
        found[theme] = [_snippet(theme, cell) for cell in cells]
    return found


def snippets() -> list[Snippet]:
    return [snippet for group in themes().values() for snippet in group]


def _snippet(theme: str, cell: str) -> Snippet:
    title, body = cell.split("\n", 1)
    marks = frozenset(re.findall(r" @(\w+)", title))
    body, _, definition = body.partition("# --- definition: ")
    before, _, after = body.partition("# --- jaxlens\n")
    reason, _, definition = definition.partition("\n")
    return Snippet(
        theme, re.sub(r" @\w+", "", title), marks, before.strip(), after.strip() or None, definition.strip() or None,
        reason,
    )


def run(code: str, names: dict[str, Any]) -> Any:
    """Runs a cell and gives the value of its last expression."""
    tree = ast.parse(code)
    last = tree.body.pop()
    assert isinstance(last, ast.Expr), f"a snippet ends with an expression:\n{code}"
    exec(compile(tree, "<snippet>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<snippet>", "eval"), names)


# --- values, as they are stored

KEPT = 40  # numbers of an array that are kept, besides its shape


def digest(value: Any) -> tuple[Any, list[np.ndarray]]:
    """A value as plain JSON, with arrays as {"array": shape, "of": kind}, and the numbers of these arrays.

    Of a large array some numbers are kept, at places that its shape decides, and the root mean square of all.
    """
    numbers: list[np.ndarray] = []

    def plain(value: Any) -> Any:
        if value is None or isinstance(value, str | bool | int):
            return value
        if hasattr(value, "A") and hasattr(value, "B") and hasattr(value, "pair"):  # a FactoredMatrix
            return {"factored": plain(value.AB)}
        if hasattr(value, "columns"):  # a DataFrame
            return {"columns": list(value.columns), "rows": plain(value.to_numpy().tolist())}
        if isinstance(value, dict) or hasattr(value, "items"):
            return {str(key): plain(one) for key, one in value.items()}
        if isinstance(value, list | tuple | type({}.keys())):
            return [plain(one) for one in value]
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        numbers.append(_kept(array))
        kind = {"f": "float", "i": "int", "u": "int", "b": "bool", "c": "complex"}[array.dtype.kind]
        return {"array": list(array.shape), "of": kind}

    return plain(value), numbers


def _kept(array: np.ndarray) -> np.ndarray:
    flat = array.reshape(-1)
    flat = flat.view(flat.real.dtype) if array.dtype.kind == "c" else flat
    flat = np.nan_to_num(flat.astype(np.float64), posinf=np.inf, neginf=-1e9)  # -inf: a masked score
    if flat.size <= KEPT:
        return flat
    finite = flat[np.abs(flat) < 1e9]
    places = np.random.default_rng(flat.size).choice(flat.size, KEPT - 1, replace=False)
    return np.append(flat[places], np.sqrt(np.mean(finite**2)))


def names_for(libraries: dict[str, Any], model: Any, array: Any) -> dict[str, Any]:
    """What a cell finds defined; `array` makes an array of the library out of numpy's."""
    logits, cache = model.run_with_cache(array(TOKENS))
    return libraries | {
        "model": model, "tokens": array(TOKENS), "corrupted_tokens": array(CORRUPTED_TOKENS), "answers": array(ANSWERS),
        "repeated_tokens": array(REPEATED_TOKENS), "logits": logits, "cache": cache,
    }  # fmt: skip


# --- the page of the documentation

INTRODUCTION = """# Coming from TransformerLens

Generated from `tests/snippets` by `python tests/snippet_worlds.py`; do not edit.

Code written for TransformerLens 3's `HookedTransformer` runs with `transformer_lens` replaced by `jaxlens` in its
imports: names, arguments, defaults, shapes and hook points are the same. What differs follows from JAX:

- **Arrays cannot be assigned to.** Where a hook in torch writes `value[:, :, 3] = 0`, return
  `value.at[:, :, 3].set(0)`. An edit in place, `value += 1` included, raises an error that shows this form.
- **Arrays are JAX's.** `axis=` for `dim=`, `keepdims=` for `keepdim=`, `jnp` for `torch`; indexing and `einops` are the
  same. A list is no index: `x[np.array([0, 2])]`. What differs most is under [Arrays](#arrays-where-torch-and-jax-differ).
- **Functions are differentiated, not tensors.** There is no `backward()`: `jax.grad`, or `run_with_cache(...,
  incl_bwd=True)` for the gradients of a loss at every hook point.
- **Nothing is ignored.** A hook name that matches nothing is an error, as is a prompt longer than `n_ctx` and a config
  field that asks for what jaxlens does not do. Fields without a meaning in JAX (`device`, `init_weights`) are accepted.
- **No switch is needed.** Asking for `hook_result`, `hook_q_input` or `hook_mlp_in` is enough; `set_use_attn_result` and
  its like put them into every cache, as there.
- **Hooks are fast, and compiled if they say what changes.** A Python function runs between two compiled pieces of its
  layer. `hook(fn, **data)` runs inside the compiled loop, and new data compile nothing. Under a `jit` of your own, pass
  the model as an argument.

Every snippet below is run by `tests/test_transformerlens_snippets.py` on a GPT-2-like and a grouped-query Llama-like
model, with raw weights or processed ones, or both where it matters, and compared with the numbers of TransformerLens
3.5.1, to 1e-5. Where TransformerLens's own number is wrong, the snippet says so and is compared with a definition.

"""

WITHOUT_COUNTERPART = """
## What differs in a value

| in TransformerLens | in jaxlens |
|---|---|
| `cfg.n_key_value_heads` is None if heads are not grouped | `n_heads` |
| `cfg.attn_scores_soft_cap`, `cfg.output_logits_soft_cap` are -1.0 if there is none | None |
| `cfg.dtype` is `torch.float32`, `cfg.device` a name | `"float32"`, a `jax.Device`: `jnp.zeros(3, device=cfg.device)` |
| a config can be assigned to | `cfg.replace(n_ctx=64)` makes another |
| `model.tokenizer` is one of transformers | a `jaxlens.Tokenizer`: `encode` adds no special tokens unless asked to; `as_transformers()` is theirs |
| the loss of a padded batch of texts counts padding on the right | it does not |
| methods of `ActivationCache` that apply a norm leave its weight out, so they want processed weights | they apply it: right on raw weights too |
| `get_act_patch_attn_head_*_every` fails on grouped heads | heads that do not exist are zeros |
| `b_in` of a gated MLP is added to the product of gate and input | to the input, before the product |
| vectors of `SVDInterpreter` have any sign | their largest entry is positive |
| hook points of `ln1` fire up to three times in a layer | once |

## What has no counterpart

| in TransformerLens | instead |
|---|---|
| `loss.backward()`, `tensor.grad`, `requires_grad_` | `jax.grad` of a function; `run_with_cache(..., incl_bwd=True)` |
| `add_caching_hooks(incl_bwd=True)` | `run_with_cache(..., incl_bwd=True)` |
| `cache_all`, `cache_some` | `add_caching_hooks`, `run_with_cache` |
| `torch.save(model.state_dict(), ...)` | `jaxlens.checkpoint.save(folder, model.cfg, model.params)` |
| `HookedRootModule` and `HookPoint()` in modules of your own | functions; the names are there for annotations and `isinstance` |
| `HookedEncoder`, `HookedEncoderDecoder`, `BertNextSentencePrediction`, `HookedAudioEncoder` | nothing: decoders only |
| `TransformerBridge` | `HookedTransformer` |
| `from_pretrained(checkpoint_index=...)` | `from_pretrained(..., revision="step3000")` |
| `from_pretrained(n_devices=2)` | `jax.device_put(model, sharding)` |
| `load_sample_training_dataset`, `sample_datapoint` | `jaxlens.utils.get_dataset` |
| `positional_embedding_type="alibi"`, `attention_dir="bidirectional"` and other config fields | an error that names the field |
"""


def page() -> str:
    """The page of all snippets: those with two forms beside each other, the others together."""
    parts = [INTRODUCTION + f"In each snippet,{GIVEN.rstrip()}".replace("\n", " ") + "\n"]
    for theme, group in themes().items():
        parts.append(f"\n## {theme}\n")
        for snippet in group:
            if snippet.own_form is not None:
                parts.append(f"**{snippet.title}**\n\n{_block(snippet.before)}\n\nin jaxlens\n\n{_block(snippet.after)}\n")
            if snippet.definition:
                how = f"**{snippet.title}**. {snippet.reason}. In jaxlens the first is the second:"
                parts.append(f"{how}\n\n{_block(snippet.after)}\n\n{_block(snippet.definition)}\n")
        same = [snippet for snippet in group if snippet.own_form is None and not snippet.definition]
        if same:
            parts.append("The same in both:\n")
            parts.append(_block("\n\n".join(f"# {snippet.title}\n{snippet.after}" for snippet in same)))
    return "\n".join(parts) + "\n" + WITHOUT_COUNTERPART


def _block(code: str) -> str:
    return f"```python\n{code}\n```"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
