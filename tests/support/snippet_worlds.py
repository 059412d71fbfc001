"""Loads the snippets of TransformerLens code, defines the two models they run on, and writes the page of snippets.

A snippet is a cell of a file in `tests/snippets/`. It begins with `# %% title`. Its value is the value of its last
expression, as in a notebook. It is written for TransformerLens; jaxlens runs the same text with `transformer_lens`
replaced by `jaxlens`. If the code differs between torch and JAX, the jaxlens form follows `# --- jaxlens`. If
TransformerLens is wrong, code that computes the correct value follows `# --- definition: reason`.

Marks at the end of a title restrict a snippet: `@gpt2` or `@llama` to a model, `@raw` or `@processed` to a state of its
weights. `@in_place` means that the TransformerLens form edits an activation in place, which is an error in jaxlens.

This module imports neither torch nor jax. The script that computes the reference values needs only torch, and the tests
need only jax.
"""

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[1] / "snippets"
REFERENCE = Path(__file__).parents[1] / "transformerlens_snippets.npz"
PAGE = Path(__file__).parents[2] / "docs" / "coming_from_transformerlens.md"

# --- the models, as config fields of TransformerLens

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
    """Random weights by their names in TransformerLens. Norms and biases are random too, so that tests depend on them."""
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
    # TransformerLens and jaxlens add b_in of a gated MLP at different steps, so it is zero
    no_bias = "mlp.b_in" if cfg.get("gated_mlp") else "none"
    return {name: np.float32(value * (not name.endswith(no_bias))) for name, value in drawn.items()}


def word_tokenizer() -> Any:
    """A `tokenizers` tokenizer of 31 words that keeps spaces, as the one of GPT-2 does, and prepends <s>."""
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
ANSWERS = np.array([[10, 24], [29, 30]])  # for each prompt, the correct and a wrong token
REPEATED_TOKENS = np.concatenate([[[0], [0]], np.tile(np.random.default_rng(7).integers(3, 31, (2, 8)), 2)], axis=1)

OF_WEIGHTS = ("Running a model", "Decomposing the residual stream", "Weights")
"""The themes that run with both raw and processed weights. The others run each model in a single state."""

# --- cells


@dataclasses.dataclass(frozen=True)
class Snippet:
    """A cell: its form for TransformerLens, and its form for jaxlens if they differ by more than the imports."""

    theme: str
    title: str
    marks: frozenset[str]
    before: str
    own_form: str | None = None
    definition: str | None = None
    reason: str = ""

    @property
    def after(self) -> str:
        """The code that jaxlens runs."""
        return self.before.replace("transformer_lens", "jaxlens") if self.own_form is None else self.own_form

    @property
    def where(self) -> list[tuple[str, str]]:
        """The models that the snippet runs on, as (name, "raw" or "processed")."""
        names = [name for name in MODELS if not self.marks & set(MODELS) or name in self.marks]
        if states := sorted(self.marks & {"raw", "processed"}):
            return [(name, state) for name in names for state in states]
        if self.theme in OF_WEIGHTS:
            return [(name, state) for name in names for state in ("raw", "processed")]
        return [(name, {"gpt2": "raw", "llama": "processed"}[name]) for name in names]


def themes() -> dict[str, list[Snippet]]:
    """The snippets of every theme, in the order of the page."""
    groups = {}
    for path in sorted(FOLDER.glob("*.py")):
        head, *cells = re.split(r"^# %% ", path.read_text("utf-8"), flags=re.M)
        theme = head.removeprefix('"""').split("\n")[0].strip('"')
        groups[theme] = [_snippet(theme, cell) for cell in cells]
    return groups


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
    )  # fmt: skip


def run(code: str, names: dict[str, Any]) -> Any:
    """Runs a cell and returns the value of its last expression."""
    tree = ast.parse(code)
    last = tree.body.pop()
    assert isinstance(last, ast.Expr), f"a snippet ends with an expression:\n{code}"
    exec(compile(tree, "<snippet>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<snippet>", "eval"), names)


# --- stored form of values

KEPT = 40  # numbers stored per array


def digest(value: Any) -> tuple[Any, list[np.ndarray]]:
    """A value as plain JSON, with arrays as {"array": shape, "of": kind}, and the numbers of these arrays.

    A large array is reduced to the entries at `KEPT - 1` indices, which depend on its size, and the root mean square.
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
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple | type({}.keys())):
            return [plain(item) for item in value]
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
    indices = np.random.default_rng(flat.size).choice(flat.size, KEPT - 1, replace=False)
    return np.append(flat[indices], np.sqrt(np.mean(finite**2)))


def names_for(libraries: dict[str, Any], model: Any, array: Any) -> dict[str, Any]:
    """The names that are defined in a cell. `array` converts an array of NumPy to one of the library."""
    logits, cache = model.run_with_cache(array(TOKENS))
    return libraries | {
        "model": model, "tokens": array(TOKENS), "corrupted_tokens": array(CORRUPTED_TOKENS), "answers": array(ANSWERS),
        "repeated_tokens": array(REPEATED_TOKENS), "logits": logits, "cache": cache,
    }  # fmt: skip


# --- the documentation page

INTRODUCTION = """# Coming from TransformerLens

Generated from `tests/snippets` by `PYTHONPATH=tests python -m support.snippet_worlds`; do not edit.

Code written for `HookedTransformer` of TransformerLens 3 runs in jaxlens if `transformer_lens` is replaced by `jaxlens`
in its imports. Names, arguments, defaults, shapes and hook points are the same. Most differences come from JAX:

- **Arrays are immutable.** A torch hook may assign `value[:, :, 3] = 0`. A jaxlens hook returns
  `value.at[:, :, 3].set(0)`. Edits in place, such as `value += 1`, raise an error that shows this form.
- **Arrays are JAX arrays.** Use `axis=` instead of `dim=`, `keepdims=` instead of `keepdim=`, and `jnp` instead of
  `torch`. `einops` works as before. A list cannot be an index; use an array: `x[np.array([0, 2])]`. See
  [Arrays](#arrays-where-torch-and-jax-differ).
- **JAX differentiates functions.** Instead of `backward()`, use `jax.grad`. For the gradients of a loss at every hook
  point, use `run_with_cache(..., incl_bwd=True)`.
- **Invalid input raises an error:** a hook name that matches no hook point, a prompt longer than `n_ctx`, or a config
  field that jaxlens does not support. Fields that have no meaning in JAX (`device`, `init_weights`) are accepted and
  have no effect.
- **Models have the same names.** `from_pretrained("pythia-70m")` loads `EleutherAI/pythia-70m`. Names are those of
  TransformerLens 3.5.1; any other Hugging Face id, folder or GGUF file is a name too. `checkpoint_index` and
  `checkpoint_value` select a training checkpoint. `jaxlens.loading_from_pretrained` lists names and checkpoints.
- **No switches are needed.** A hook or a `names_filter` that selects `hook_result`, `hook_q_input` or `hook_mlp_in` is
  enough. `set_use_attn_result` and similar methods add these activations to every cache, as in TransformerLens.
- **Models with raw weights have more hook points:** `ln1.hook_out` and `ln2.hook_out` of TransformerLens 4, which are
  what attention and the MLP read. An unfiltered cache contains them, and `name.endswith("_out")` selects them.
- **Hooks do not recompile the model.** A Python hook runs between two compiled steps of its layer. `hook(fn, **data)`
  runs inside the compiled loop, and new data do not recompile it. In your own `jit`, pass the model as an argument.

`tests/test_transformerlens_snippets.py` runs every snippet below on two models: one like GPT-2, and one like Llama with
grouped-query attention. Weights are raw, processed, or both if this matters. Results must equal those of
TransformerLens 3.5.1 within 1e-5 of the largest value; hook points that it does not have are left out. If
TransformerLens is wrong, the snippet gives the reason, and its result is compared with a definition.

`tests/test_generate_compat.py` does the same for [text generation](generation.md): `generate`, with its arguments in the
same order, `generate_stream`, and KV caches. There, the results are known from whole runs.

In each snippet, `model` is the model. `tokens` and `corrupted_tokens` are `[2, 7]`. `answers` is `[2, 2]`: the correct
and a wrong next token of each prompt. `repeated_tokens` is `[2, 17]`: BOS, then the same 8 random tokens twice.
`logits` and `cache` are the results of `model.run_with_cache(tokens)`. These imports are assumed: `np`, `einops`,
`partial`, and `torch` in TransformerLens or `jax` and `jnp` in jaxlens.
"""

DIFFERENCES = """## Values that differ

| in TransformerLens | in jaxlens |
|---|---|
| `cfg.n_key_value_heads` is None without grouped-query attention | the field equals `n_heads` |
| `cfg.attn_scores_soft_cap` and `cfg.output_logits_soft_cap` are -1.0 without a soft cap | the fields are None |
| `cfg.dtype` is `torch.float32`, `cfg.device` is a string | `cfg.dtype` is `"float32"`, `cfg.device` is a `jax.Device`, as in `jnp.zeros(3, device=cfg.device)` |
| fields of every config can be assigned | those of `model.cfg` can; any other config is immutable, and `cfg.replace(n_ctx=64)` returns a new one |
| `model.tokenizer` is a tokenizer of transformers | a `jaxlens.Tokenizer`. Its methods take the arguments of transformers, but by default `encode` adds no special tokens. `as_transformers()` returns the tokenizer of transformers |
| the loss of a padded batch includes padding on the right | it excludes padding |
| methods of `ActivationCache` that apply a norm omit its weight, so they need processed weights | they apply it, so raw weights are also correct |
| `get_act_patch_attn_head_*_every` fails for grouped-query attention | entries of missing key/value heads are zero |
| `b_in` of a gated MLP is added to the product of gate and input | it is added to the input, before the product |
| `W_E` of Gemma contains the factor √d_model, and `w` of its norms the 1 that is added to them | they are those of the checkpoint: the embedding is `W_E * cfg.embed_scale`, and with `cfg.rmsnorm_uses_offset` norms multiply by 1 + `w` |
| the sign of vectors of `SVDInterpreter` is arbitrary | the component of largest absolute value is positive |
| hook points of `ln1` run up to three times in a layer | they run once |
| the keys in a `past_kv_cache` are stored before rotation, and `hook_rot_k` receives those of all tokens | they are stored after rotation, and `hook_rot_k` receives those of new tokens |
| in a generation, patterns of a new token have a source for each token so far | they have one for each slot of the KV cache: see [generation.md](generation.md#what-a-hook-receives) |
| `generate` samples with torch's random numbers | with JAX's: `seed=`, or `numpy.random.seed` |

## What to use instead

| in TransformerLens | in jaxlens |
|---|---|
| `loss.backward()`, `tensor.grad`, `requires_grad_` | `jax.grad` of a function; `run_with_cache(..., incl_bwd=True)` |
| `get_act_patch_*` on a model that has hooks | a loop of `run_with_hooks`, or `model.with_params` with changed weights: a sweep needs a model without hooks |
| `add_caching_hooks(incl_bwd=True)` | `run_with_cache(..., incl_bwd=True)` |
| `torch.save(model.state_dict(), ...)` | `jaxlens.checkpoints.converter.save(folder, model.cfg, model.params)` |
| `generate(stopping_criteria=...)` | `stop_strings=`, `eos_token_id=`, or leave the loop over `generate_stream` |
| a hook that counts calls to know the step of a generation | `hook.step` and `hook.positions` |
| `HookedRootModule` and `HookPoint()` in your own modules | the same, in modules of Flax: see [flax.md](flax.md#your-own-models) |
| `transformer_lens.components`, `.cache`, `.factories`, `.model_bridge` and other modules | the ImportError says what to use |
| `HookedEncoder`, `HookedEncoderDecoder`, `BertNextSentencePrediction`, `HookedAudioEncoder` | not supported; jaxlens has decoder-only models |
| `TransformerBridge` | `HookedTransformer` |
| `from_pretrained(n_devices=2)`, which gives each device some of the layers | the same, which gives each device a part of every layer: see [devices.md](devices.md) |
| `load_sample_training_dataset`, `sample_datapoint` | `jaxlens.utils.get_dataset` |
| `positional_embedding_type="alibi"`, `attention_dir="bidirectional"` and other config fields | not supported; an error names the field |
"""

EQUAL = "In jaxlens, the first block gives the same values as the second, which is the definition:"


def page() -> str:
    """The page of all snippets. Snippets with two blocks come first in each theme, then those that are the same."""
    sections = [INTRODUCTION]
    for theme, group in themes().items():
        sections.append(f"## {theme}\n")
        for snippet in group:
            title, after = f"**{snippet.title}**", _block(snippet.after)
            if snippet.own_form is not None:
                before = _block(snippet.before)
                sections.append(f"{title}\n\nIn TransformerLens:\n\n{before}\n\nIn jaxlens:\n\n{after}\n")
            if snippet.definition:
                how = f"{title}. {snippet.reason}. {EQUAL}"
                sections.append(f"{how}\n\n{after}\n\n{_block(snippet.definition)}\n")
        same = [snippet for snippet in group if snippet.own_form is None and not snippet.definition]
        if same:
            sections.append("The same in both libraries, except for the imports:\n")
            sections.append(_block("\n\n".join(f"# {snippet.title}\n{snippet.after}" for snippet in same)) + "\n")
    return "\n".join([*sections, DIFFERENCES])


def _block(code: str) -> str:
    return f"```python\n{code}\n```"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
