"""The patching sweep in TransformerLens 4, which needs another Python environment.

    python -m benchmarks.patching --transformerlens /path/to/python

runs this file with a Python in which transformer-lens==4.3.0 is installed. A line of JSON on stdin is a request,
{"clean": tokens, "corrupted": tokens, "answers": tokens}. The response on stdout is {"seconds": ..., "values": ...}.
"""

import json
import os
import sys
import time

THREADS = 2


def main(folder: str) -> None:
    """Runs a sweep of the model in a Hugging Face folder for every line of stdin."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    responses, sys.stdout = sys.stdout, sys.stderr  # keeps what the packages print out of the responses
    import torch
    from transformer_lens import patching
    from transformer_lens.model_bridge import TransformerBridge

    torch.set_num_threads(THREADS)
    model = TransformerBridge.boot_transformers(folder, dtype=torch.float32, device="cpu")
    model.enable_compatibility_mode(no_processing=True)
    for line in sys.stdin:
        request = {name: torch.tensor(tokens) for name, tokens in json.loads(line).items()}

        def metric(logits, answers=request["answers"]):
            right, wrong = logits[:, -1].gather(-1, answers).T
            return (right - wrong).mean()

        with torch.no_grad():
            _, cache = model.run_with_cache(request["clean"])
            start = time.perf_counter()
            values = patching.get_act_patch_resid_pre(model, request["corrupted"], cache, metric)
            seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "values": values.tolist()}), file=responses, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
