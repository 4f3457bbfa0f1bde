"""A small convolutional classifier of thumbnails, trained by whoever measures with it: a second opinion on drawn images
that knows their very classes.

Letters: M images, B of a batch, S side in pixels, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok_pipe.evaluation.features import Features
from tatok_pipe.nn.weights_folder import WeightsFolder
from tatok_pipe.seeds import hash_seed

FOLDER = WeightsFolder(
    weights="classifier.safetensors",
    description="classifier.json",
    format=1,
    option="classifier",
    origin="it is made by tatok_pipe.study",
)
_WIDTHS = (32, 64, 128)
_BATCH_IMAGES = 128
_PEAK_RATE = 3e-3


class Classifier(nn.Module):
    """Three pairs of convolutions, each at half the size of the one before; features are means over places."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in _WIDTHS:
            for channels in (before, width):
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
            layers.append(nn.MaxPool2d(2))
            before = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(before, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] to (B, D)."""
        return self.body(images * 2 - 1).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] to logits (B, C)."""
        return self.head(self.features(images))

    @torch.no_grad()
    def describe(self, images: Tensor) -> Features:
        """Of images (B, 3, S, S) in [0, 1], with the weights as they are."""
        vectors = self.features(images)
        return Features(vectors.float().cpu().numpy(), self.head(vectors).float().cpu().numpy())


def train_classifier(
    pixels: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    epochs: int,
    device: torch.device | str = "cpu",
    seed: int = 0,
    touch: Callable[[int], None] = lambda _: None,
) -> Classifier:
    """A classifier in eval mode from pixels (M, S, S, 3) uint8 and labels (M,): AdamW with one cycle of its rate over
    images that are shuffled, mirrored and moved by up to an eighth of their side. `touch` is told of images done."""
    random = torch.Generator().manual_seed(hash_seed(seed, 0) >> 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(num_classes).to(device)
    images, targets = torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels).long()
    steps_per_epoch = -(-len(images) // _BATCH_IMAGES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_PEAK_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _PEAK_RATE, total_steps=epochs * steps_per_epoch, pct_start=0.2
    )
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=random).split(_BATCH_IMAGES):
            batch = _augment(images[chosen].float() / 255, random).to(device)
            loss = F.cross_entropy(model(batch), targets[chosen].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            touch(len(chosen))
    return model.eval().requires_grad_(False)


def _augment(images: Tensor, random: torch.Generator) -> Tensor:
    """Half of the images (B, 3, S, S) mirrored, and all of them moved together."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=random) < 0.5
    images = torch.where(mirrored, images.flip(3), images)
    most = images.shape[3] // 8
    down, right = torch.randint(0, 2 * most + 1, (2,), generator=random).tolist()
    padded = F.pad(images, (most, most, most, most), mode="reflect")
    return padded[:, :, down : down + images.shape[2], right : right + images.shape[3]]


def save_classifier(url: str, model: Classifier) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    FOLDER.write(url, tensors, {"num_classes": model.head.out_features})


def load_classifier(url: str, *, device: torch.device | str = "cpu") -> Classifier:
    """Raises UserError where there is none."""
    description, tensors = FOLDER.read(url)
    model = Classifier(int(description["num_classes"]))
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False).to(device)
