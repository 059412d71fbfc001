"""TransformerLens's training loop: next-token prediction on rows of tokens.

Axes: b row, p position. For a loop of one's own, `model.params` is what an optimiser of optax takes, and
`model.with_params` what a loss is computed with.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from tqdm.auto import tqdm

from jaxlens.checkpoint import save
from jaxlens.optional import needed
from jaxlens.parameters import Params
from jaxlens.transformer import HookedTransformer


@dataclasses.dataclass
class HookedTransformerTrainConfig:
    """How a model is trained.

    `warmup_steps` raise the learning rate from zero; `max_grad_norm` clips the norm of all gradients together. Every
    `save_every` steps the model is saved into a folder of `save_dir`. An epoch ends after `max_steps`.
    """

    num_epochs: int
    batch_size: int
    lr: float = 1e-3
    seed: int = 0
    momentum: float = 0.0
    max_grad_norm: float | None = None
    weight_decay: float | None = None
    optimizer_name: str = "Adam"
    device: Any = None
    warmup_steps: int = 0
    save_every: int | None = None
    save_dir: str | None = None
    wandb: bool = False
    wandb_project_name: str | None = None
    print_every: int | None = 50
    max_steps: int | None = None


def train(model: HookedTransformer, config: HookedTransformerTrainConfig, dataset: Any) -> HookedTransformer:
    """Trains a model in place on a dataset whose items are dicts with "tokens" [p], and returns it.

    Each epoch takes the rows in another order, which `config.seed` decides; the last batch may be smaller.

    Raises:
        ValueError: there is no such optimizer.
        ImportError: `config.wandb`, and the package wandb is not installed.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=1, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> rows = np.tile(np.arange(8), (4, 1))
        >>> before = model(rows, return_type="loss")
        >>> how = HookedTransformerTrainConfig(num_epochs=5, batch_size=2, lr=1e-2, print_every=None)
        >>> bool(train(model, how, [{"tokens": row} for row in rows])(rows, return_type="loss") < before)
        True
    """
    if config.device is not None:
        model.to(config.device)
    optimizer, params = optimizer_of(config), model.params
    state = optimizer.init(params)
    run = _wandb_run(config) if config.wandb else None
    random, n_rows = np.random.default_rng(config.seed), 0
    for epoch in tqdm(range(1, config.num_epochs + 1), disable=config.print_every is None):
        order, n_rows = random.permutation(len(dataset)), 0
        for step, first in enumerate(range(0, len(order), config.batch_size)):
            rows = [dataset[int(row)]["tokens"] for row in order[first : first + config.batch_size]]
            tokens = jnp.asarray(np.stack([np.asarray(row) for row in rows]))
            params, state, loss = _step(model, params, state, tokens, update=optimizer.update)
            n_rows += len(rows)
            if run is not None:
                run.log({"train_loss": float(loss), "samples": n_rows, "epoch": epoch})
            if config.print_every is not None and step % config.print_every == 0:
                print(f"Epoch {epoch} Samples {n_rows} Step {step} Loss {float(loss)}")
            if config.save_dir is not None and config.save_every is not None and step % config.save_every == 0:
                save(Path(config.save_dir) / f"model_{step}", model.cfg, params, model.tokenizer)
            if config.max_steps is not None and step >= config.max_steps:
                break
    model._put_params(params, model.cfg)
    return model


def optimizer_of(config: HookedTransformerTrainConfig) -> optax.GradientTransformation:
    """The optimiser that a config describes.

    Raises:
        ValueError: there is none of that name.
    """
    rate = config.lr
    if config.warmup_steps:
        rate = lambda step: config.lr * jnp.minimum(1.0, step / config.warmup_steps)  # noqa: E731
    if config.optimizer_name in ("Adam", "AdamW"):
        decay = config.weight_decay
        chosen = optax.adam(rate) if decay is None else optax.adamw(rate, weight_decay=decay)
    elif config.optimizer_name == "SGD":
        decay = optax.add_decayed_weights(config.weight_decay or 0.0)
        chosen = optax.chain(decay, optax.sgd(rate, config.momentum or None))
    else:
        raise ValueError(f'optimizer_name is {config.optimizer_name!r}; wanted "Adam", "AdamW" or "SGD"')
    clipped = config.max_grad_norm is not None
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), chosen) if clipped else chosen


@functools.partial(jax.jit, static_argnames="update")
def _step(
    model: HookedTransformer, params: Params, state: Any, tokens: Int[Array, "b p"], *, update: Callable
) -> tuple[Params, Any, Float[Array, ""]]:
    """Parameters and optimiser after one step, and the loss before it."""
    loss, gradients = jax.value_and_grad(lambda params: model.with_params(params)(tokens, return_type="loss"))(params)
    updates, state = update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss


def _wandb_run(config: HookedTransformerTrainConfig) -> Any:
    wandb = needed("wandb", "logging a training run")
    return wandb.init(project=config.wandb_project_name or "easy-transformer", config=dataclasses.asdict(config))
