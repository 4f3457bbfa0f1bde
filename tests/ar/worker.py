"""One process of a training of several: `python -m tests.ar.worker '{"rank": 0, …}'`. Leaves what it found as JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from tests.ar.trainings import TRAINING, load, make_loader, make_trainer, save_part, train


def main(options: dict[str, Any]) -> None:
    rank, num_ranks = options["rank"], options["num_ranks"]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{options['port']}", rank=rank, world_size=num_ranks
    )
    training = replace(TRAINING, shard=options.get("shard", "no"))
    trainer = make_trainer(training, rank=rank, num_ranks=num_ranks)
    loader = make_loader(options["url"], rank=rank, num_ranks=num_ranks)
    if resume := options.get("resume"):
        loader.load_state_dict(load(Path(resume), trainer)["loader"])
    losses = train(trainer, iter(loader), options["num_steps"])
    if save := options.get("save"):
        folder = Path(save, f"part-{rank}")
        folder.mkdir(parents=True)
        extra = {"loader": loader.state_dict()}
        save_part(folder, trainer, extra, rank=rank, num_ranks=num_ranks)
    whole: dict[str, Any] = get_model_state_dict(
        trainer.model, options=StateDictOptions(full_state_dict=True)
    )
    norms = {name: float(value.double().norm()) for name, value in whole.items()}
    found = Path(options["found"])
    (found / f"{rank}.part").write_text(json.dumps({"losses": losses, "norms": norms}))
    (found / f"{rank}.part").rename(found / f"{rank}.json")
    # A process that leaves while another still reads its last message resets the connection under it.
    deadline = time.monotonic() + 60
    while len(list(found.glob("*.json"))) < num_ranks and time.monotonic() < deadline:
        time.sleep(0.01)
    os._exit(0)  # not through destructors: gloo's threads may abort where their peer is gone


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
