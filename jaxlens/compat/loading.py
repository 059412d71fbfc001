"""from_pretrained, with TransformerLens's further arguments."""

import contextlib
import tempfile
from collections.abc import Mapping
from typing import Any

import jax

from jaxlens.convert import load
from jaxlens.devices import as_device
from jaxlens.weights import process_weights


def load_pretrained(
    kind: type, model_name: str, passes: Mapping[str, bool], how: Mapping[str, Any], text: Mapping[str, Any],
    hf_model: Any = None, device: Any = None,
) -> Any:  # fmt: skip
    """A model of class `kind`: loaded as `jaxlens.convert.load` is told by `how`, processed by `passes`.

    With `hf_model`, a transformers model, its weights are taken, by way of files.
    """
    place = None if device is None else as_device(device)
    with contextlib.ExitStack() as stack:
        if isinstance(place, jax.Device):
            stack.enter_context(jax.default_device(place))
        source = model_name
        if hf_model is not None:
            source = stack.enter_context(tempfile.TemporaryDirectory())
            hf_model.save_pretrained(source)
        loaded = load(source, **how)
        bos = text["default_prepend_bos"]
        cfg = loaded.cfg if bos is None else loaded.cfg.replace(default_prepend_bos=bos)
        params, cfg, report = process_weights(loaded.params, cfg, **passes, donate=True)
    model = kind(
        cfg, loaded.tokenizer, default_padding_side=text["default_padding_side"], params=params,
        name=loaded.name if hf_model is None else model_name, source=loaded.source,
    )  # fmt: skip
    model.processing = report
    return model if place is None else model.to(place)
