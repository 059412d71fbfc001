"""TransformerLens's training loop: next-token prediction on rows of tokens.

To write your own loop, optimize `model.params` with optax, and compute the loss with `model.with_params(params)`.

Axes: b row, p position.
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
from tqdm import tqdm

from jaxlens.checkpoints.converter import save
from jaxlens.errors import require
from jaxlens.model.transformer import HookedTransformer
from jaxlens.nn.parameters import Params


@dataclasses.dataclass
class HookedTransformerTrainConfig:
    """The options of a training run.

    The learning rate rises linearly from zero over `warmup_steps`. The global norm of the gradients is clipped to
    `max_grad_norm`. Steps are counted from 0 in each epoch. Every `save_every` steps, the model is saved in the folder
    `model_STEP` of `save_dir`. An epoch ends after step `max_steps`.
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
    """Trains a model in place on a dataset whose items are dicts with "tokens" [p], and returns the model.

    `config.seed` determines the order of the rows, which differs between epochs. The last batch may be smaller.

    Raises:
        ValueError: `config.optimizer_name` is unknown.
        ImportError: `config.wandb` is set and the package wandb is not installed.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=1, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> rows = np.tile(np.arange(8), (4, 1))
        >>> before = model(rows, return_type="loss")
        >>> config = HookedTransformerTrainConfig(num_epochs=5, batch_size=2, lr=1e-2, print_every=None)
        >>> bool(train(model, config, [{"tokens": row} for row in rows])(rows, return_type="loss") < before)
        True
    """
    if config.device is not None:
        model.to(config.device)
    # Every step reuses the memory of its arguments, so the weights are copied once: the caller may hold them.
    optimizer, params = optimizer_of(config), jax.tree.map(jnp.copy, model.params)
    state = optimizer.init(params)
    run = None
    if config.wandb:
        project = config.wandb_project_name or "easy-transformer"
        wandb = require("wandb", "logging a training run")
        run = wandb.init(project=project, config=dataclasses.asdict(config))
    random = np.random.default_rng(config.seed)
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
    model.set_params(params)
    return model


def optimizer_of(config: HookedTransformerTrainConfig) -> optax.GradientTransformation:
    """The optax optimizer of a config.

    Raises:
        ValueError: `optimizer_name` is unknown.
    """
    rate = config.lr
    if config.warmup_steps:
        rate = lambda step: config.lr * jnp.minimum(1.0, step / config.warmup_steps)  # noqa: E731
    if config.optimizer_name in ("Adam", "AdamW"):
        decay = config.weight_decay
        optimizer = optax.adam(rate) if decay is None else optax.adamw(rate, weight_decay=decay)
    elif config.optimizer_name == "SGD":
        decay = optax.add_decayed_weights(config.weight_decay or 0.0)
        optimizer = optax.chain(decay, optax.sgd(rate, config.momentum or None))
    else:
        raise ValueError(f'optimizer_name is {config.optimizer_name!r}; expected "Adam", "AdamW" or "SGD"')
    clips = config.max_grad_norm is not None
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optimizer) if clips else optimizer


@functools.partial(jax.jit, static_argnames="update", donate_argnames=("params", "state"))
def _step(
    model: HookedTransformer, params: Params, state: Any, tokens: Int[Array, "b p"], *, update: Callable
) -> tuple[Params, Any, Float[Array, ""]]:
    """The parameters and the optimizer state after a step, and the loss before it."""
    loss, gradients = jax.value_and_grad(lambda params: model.with_params(params)(tokens, return_type="loss"))(params)
    updates, state = update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss
