"""`use_compilation_cache`: a later process compiles nothing that an earlier one has compiled."""

import json
import subprocess
import sys
from pathlib import Path

PROCESS = """
import collections, json, sys
import jax, numpy as np
import jaxlens
from jaxlens.analysis import activation_patch

folder = jaxlens.use_compilation_cache(sys.argv[1])
assert str(folder) == sys.argv[1] == str(jaxlens.use_compilation_cache())
events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **kwargs: events.update([event.split("/")[-1]]))
cfg = jaxlens.Config(n_layers=3, d_model=12, n_heads=3, d_head=4, d_vocab=17, n_ctx=16)
model, tokens = jaxlens.HookedTransformer(cfg), np.arange(10).reshape(2, 5)
model(tokens)
model.run_with_cache(tokens)
model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: z * 2)])
activation_patch(model, tokens, tokens[::-1], lambda logits: logits[:, -1, 3].mean(), progress=False)
print(json.dumps([events["cache_hits"], events["cache_misses"]]))
"""


def test_a_later_process_reads_every_program_from_the_disk(tmp_path):
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "programs")]
    runs = [subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True) for _ in range(2)]
    (first_hits, compiled), (hits, compiled_again) = (json.loads(run.stdout) for run in runs)
    assert compiled > 30  # also small ones, such as the steps of the hooked layer
    assert compiled_again == 0
    assert hits == first_hits + compiled
    assert len(list(Path(command[-1]).iterdir())) >= compiled
