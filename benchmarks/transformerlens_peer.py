"""The same sweep in TransformerLens 4, in a process of its own: its packages are not those of this project.

    python -m benchmarks.patching --transformerlens /path/to/python

starts this file with a Python in which `pip install transformer-lens==4.3.0` was run, and talks to it by lines of JSON:
in goes {"clean": tokens, "corrupted": tokens, "answers": tokens}, out come the sweep's seconds and values.
"""

import json
import os
import sys
import time

THREADS = 2


def main(folder: str) -> None:
    """Serves sweeps over a model in a Hugging Face folder until its input ends."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the packages print does not belong to the answers
    import torch
    from transformer_lens import patching
    from transformer_lens.model_bridge import TransformerBridge

    torch.set_num_threads(THREADS)
    model = TransformerBridge.boot_transformers(folder, dtype=torch.float32, device="cpu")
    model.enable_compatibility_mode(no_processing=True)
    for line in sys.stdin:
        given = {name: torch.tensor(tokens) for name, tokens in json.loads(line).items()}

        def metric(logits, right_and_wrong=given["answers"]):
            right, wrong = logits[:, -1].gather(-1, right_and_wrong).T
            return (right - wrong).mean()

        with torch.no_grad():
            _, cache = model.run_with_cache(given["clean"])
            start = time.perf_counter()
            values = patching.get_act_patch_resid_pre(model, given["corrupted"], cache, metric)
            seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "values": values.tolist()}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
