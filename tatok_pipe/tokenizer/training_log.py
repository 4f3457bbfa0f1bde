"""What tokenizer training leaves behind beside weights: curves, scalars and pictures.

Letters: M images, S image size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tatok_pipe.tokenizer.analysis import psnr
from tatok_pipe.tokenizer.dtf import Filter, keep_mask
from tatok_pipe.tokenizer.model import TaTok

PATIENCE_STEPS = 200  # that held-out images may be worse than at the start before learning rates are halved
_NOISE_DB = 0.02  # less is no fall
# Columns of a panel beside the original, by the share of patches that are kept, those whose codewords gain most.
_SHARES = {"all": 1.0, "half": 0.5, "quarter": 0.25, "globals": 0.0}


@dataclass
class TrainingCurves:
    """They travel with the checkpoints, so that a resumed training has the same ones."""

    train_s: float = 0.0  # time spent in training, over all attempts up to their last checkpoint
    losses: list[dict[str, Any]] = field(default_factory=list)  # every `logging.every_steps`
    held_out: list[dict[str, Any]] = field(default_factory=list)  # every `validation.every_steps`
    start_s: float = 0.0  # spent in the closed form
    behind_since: int | None = None  # the step from which on held-out images are worse than at the start

    def falls_behind(self, step: int) -> bool:
        """Whether, by the last look, held-out images have been worse than at step 0 for so many steps, at some share
        of kept patches; the count begins again then. False where nothing was looked at before the first step."""
        if not self.held_out or self.held_out[0]["step"] != 0:
            return False
        start, now = self.held_out[0], self.held_out[-1]
        if all(now[name] >= start[name] - _NOISE_DB for name in start if name.startswith("psnr_")):
            self.behind_since = None
            return False
        if self.behind_since is None:
            self.behind_since = step
        if step - self.behind_since < PATIENCE_STEPS:
            return False
        self.behind_since = step
        return True


@torch.no_grad()
def look(model: TaTok, images: Tensor) -> tuple[dict[str, float], np.ndarray]:
    """Mean PSNR of images (M, 3, S, S) at several shares of kept patches, and a panel of uint8 pixels: a row for each
    image, the original first, then those shares."""
    was_training = model.training
    model.eval()
    encoded = model.encode(images)
    cost = encoded.gain
    figures, columns = {}, [images]
    for name, share in _SHARES.items():
        keep = keep_mask(cost, Filter("top_k", round(share * cost.shape[1]), min_patches=0))
        column = model.decode(encoded.globals.codes, encoded.patches.codes, keep)
        figures[f"psnr_{name}"] = psnr(column, images).mean().item()
        columns.append(column)
    model.train(was_training)
    rows = torch.cat(columns, dim=3).clamp(0, 1)  # (M, 3, S, 5·S)
    panel = torch.cat(list(rows), dim=1).permute(1, 2, 0)  # (M·S, 5·S, 3)
    return figures, (panel * 255).round().byte().cpu().numpy()
