"""One of two processes that hold a model together. Prints, as JSON, how far its results are from those of one process.

Arguments: the number of the process, the port of the first, the folder of a checkpoint, and that of a harvest.
"""

import json
import sys

import jax
import numpy as np

jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[1]))

from jax.experimental import multihost_utils  # noqa: E402

from jaxlens import HookedTransformer, batch  # noqa: E402
from jaxlens.checkpoints.safetensors_reader import SafetensorsFile  # noqa: E402
from jaxlens.sharding import default_mesh  # noqa: E402

TOKENS = np.random.default_rng(0).integers(0, 64, (2, 7))
bytes_read = []


def counted(read):
    def run(*args):
        value = read(*args)
        bytes_read.append(value.nbytes)
        return value

    return run


def results(model) -> dict[str, np.ndarray]:
    logits, cache = model.run_with_cache(TOKENS, names_filter=["blocks.*.attn.hook_z", "blocks.*.hook_resid_post"])
    generated = model.generate(TOKENS, 3, do_sample=False, stop_at_eos=False, verbose=False)
    return {**cache, "logits": logits, "loss": model(TOKENS, return_type="loss"), "generated": generated}


def on_host(array) -> np.ndarray:
    return np.asarray(array if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True))


folder = sys.argv[3]
SafetensorsFile.read, SafetensorsFile.part = counted(SafetensorsFile.read), counted(SafetensorsFile.part)
model = HookedTransformer.from_pretrained(folder, mesh=default_mesh(1, 2))
read, whole = sum(bytes_read), HookedTransformer.from_pretrained(folder)
found = {name: on_host(array) for name, array in results(model).items()}
distances = {
    name: float(np.abs(found[name] - np.asarray(array)).max() / np.abs(np.asarray(array)).max())
    for name, array in results(whole).items()
}
documents, names = [row.tolist() for row in np.tile(TOKENS, (3, 1))], ["blocks.*.hook_resid_post"]
stored_rows = batch.harvest(model, documents, names, sys.argv[4], shard_tokens=10)[:]  # by both processes together
for name, array in next(batch.harvest(whole, documents, names)).items():
    distances[f"harvest of {name}"] = float(np.abs(stored_rows[name] - array).max() / max(1, np.abs(array).max()))
replicated = sum(weight.nbytes for weight in model.params.values() if weight.is_fully_replicated)
stored = sum(weight.nbytes for weight in model.params.values())
print(json.dumps({"distances": distances, "read": read, "expected": replicated + (stored - replicated) / 2}))
