"""One side of `encode_against`, a process of its own whose `tatok_pipe` is that of the folder it is given.

    python -P encode_side.py ROOT PIXELS.npy        PIXELS (M, S, S, 3) uint8

Answers each line on stdin, "speed" or "quality", with a line of JSON. It imports what all revisions have.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

BATCH = 16
_REPEATS = 3
_KEEP_SHARES = (1.0, 0.5, 0.25)


def main(root: str, pixels: str) -> None:
    torch.set_num_threads(1)
    sys.path.insert(0, root)
    import tatok_pipe  # noqa: PLC0415 - of `root`
    from tatok_pipe.tokenizer.checkpoint import load_tokenizer  # noqa: PLC0415

    found = Path(str(tatok_pipe.__file__)).parents[1]
    if found != Path(root).resolve():
        raise SystemExit(f"tatok_pipe is that of {found}, expected {root}")
    tokenizer = load_tokenizer()
    model = tokenizer.model
    images = torch.from_numpy(np.load(pixels)).permute(0, 3, 1, 2).float().div_(255)
    for line in sys.stdin:
        with torch.inference_mode():
            answer = speed(model, images) if line.strip() == "speed" else quality(model, images)
        print(json.dumps(answer | {"fingerprint": tokenizer.fingerprint[:12]}), flush=True)


def speed(model: Any, images: torch.Tensor) -> dict[str, float]:
    """CPU seconds an image of both parts, in batches of 16."""
    batches = [batch for batch in images.split(BATCH) if len(batch) == BATCH]
    codes = [(each.globals.codes, each.patches.codes) for each in map(model.encode, batches)]
    count = BATCH * len(batches)
    encoder_s = cpu_s(lambda: [model.encode(batch) for batch in batches]) / count
    entropy_s = cpu_s(lambda: [model.patch_entropy(*pair) for pair in codes]) / count
    return {"encoder_s": encoder_s, "entropy_s": entropy_s}


def quality(model: Any, images: torch.Tensor) -> dict[str, float]:
    """Mean PSNR in dB at equal token counts, patches kept by the drop-cost head, which all revisions have; and the
    mean entropy and surprisal of a patch code in nats."""
    from tatok_pipe.tokenizer.dtf import Filter, keep_mask  # noqa: PLC0415

    sums: dict[str, float] = {}
    for batch in images.split(BATCH):
        encoded = model.encode(batch)
        codes = encoded.globals.codes, encoded.patches.codes
        nats = model.predict(*codes).patch_logits.float().log_softmax(dim=-1)
        figures = {
            "entropy_nats": -(nats.exp() * nats).sum(dim=-1).mean(dim=1),
            "surprisal_nats": -nats.gather(-1, codes[1][..., None])[..., 0].mean(dim=1),
        }
        cost = model.log_drop_cost(encoded)
        for share in _KEEP_SHARES:
            num_kept = round(share * cost.shape[1])
            output = model.decode(*codes, keep_mask(cost, Filter("top_k", num_kept)))
            error = (output - batch).square().flatten(1).mean(dim=1)
            figures[f"psnr_{num_kept}"] = -10 * error.log10()
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + float(value.sum())
    return {name: value / len(images) for name, value in sums.items()}


def cpu_s(function: Callable[[], object]) -> float:
    """CPU seconds of a call, the least of several after one to warm up."""
    function()
    found = []
    for _ in range(_REPEATS):
        start = time.process_time()
        function()
        found.append(time.process_time() - start)
    return min(found)


if __name__ == "__main__":
    main(*sys.argv[1:3])
