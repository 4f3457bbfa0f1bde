"""The options of train_tokenizer."""

from __future__ import annotations

import math

from tatok_pipe.config.options import config_dataclass, option, section
from tatok_pipe.ray_runtime.options import WorkersConfig
from tatok_pipe.storage.settings import OTHER_STORES_HELP, STORAGE_HELP, StorageConfig
from tatok_pipe.tokenizer.options import TaTokConfig
from tatok_pipe.tokenizer.training_options import PATCHED_SHARE, TrainingConfig
from tatok_pipe.training.options import CheckpointsConfig, LoggingConfig


@config_dataclass
class InputConfig:
    shards: str = option(
        "",
        help="image shards to train on: glob, braces, @list.txt or directory, on any URL; or a folder of images, or a "
        "manifest",
        is_url=True,
    )
    other_stores: bool = option(False, help=OTHER_STORES_HELP)
    max_scale: float = option(
        1.6,
        at_least=1,
        help="crops are cut at a random scale, from 1 to this many image sizes on the short side",
        unit="image sizes",
    )
    plain_share: float = option(
        0.0,
        at_least=0,
        below=1,
        help="images that are replaced by one random colour, so that globals alone can carry any colour; photographs "
        "hold few of the bright ones",
        unit="share of images",
    )


@config_dataclass
class ValidationConfig:
    shards: str = option("", help="image shards to measure on; nothing of them is trained on", is_url=True)
    other_stores: bool = option(False, help=OTHER_STORES_HELP)
    max_images: int = option(
        256,
        at_least=1,
        help="images to measure on, and of the training shards to calibrate on, as many of each shard",
        unit="images",
    )
    every_steps: int = option(
        1_000, at_least=1, help="PSNR and pictures of the first held-out images this often", unit="steps"
    )
    panel_images: int = option(8, at_least=1, help="how many images these are", unit="images")


@config_dataclass
class OutputConfig:
    url: str = option(
        "", help="folder for checkpoints/, tensorboard/ and the finished tokenizer/, on any URL", is_url=True
    )
    half: bool = option(False, help="store the finished weights as bfloat16, half the size")


@config_dataclass
class TrainTokenizerConfig:
    input: InputConfig = section(InputConfig, help="what to train on")
    validation: ValidationConfig = section(ValidationConfig, help="what to measure on")
    output: OutputConfig = section(OutputConfig, help="where the results go")
    model: TaTokConfig = section(TaTokConfig, help="the tokenizer")
    training: TrainingConfig = section(TrainingConfig, help="how it is trained")
    checkpoints: CheckpointsConfig = section(CheckpointsConfig, help="what a restart goes on from")
    workers: WorkersConfig = section(WorkersConfig, help="Ray Train workers")
    logging: LoggingConfig = section(LoggingConfig, help="what is printed")
    storage: StorageConfig = section(StorageConfig, help=STORAGE_HELP)
    seed: int = option(0, at_least=0, help="seed of weights, order, augmentation and masks")
    dry_run: bool = option(
        False, help="print weights, arithmetic of an image and memory of a worker, and train nothing"
    )

    def __post_init__(self) -> None:
        training, loss = self.training, self.training.loss
        if training.batch_size % self.workers.count:
            raise ValueError(
                f"training.batch_size={training.batch_size}: expected a multiple of "
                f"workers.count={self.workers.count}"
            )
        smallest = loss.discriminator.smallest_image
        if loss.adversarial and self.model.image_size < smallest:
            raise ValueError(
                f"training.loss.discriminator.depth={loss.discriminator.depth}: expected images of {smallest} pixels "
                f"or more, model.image_size={self.model.image_size}; give a smaller depth"
            )
        for name in ("global_codebook", "patch_codebook"):
            kind = getattr(self.model, name).kind
            if training.starts_in_closed_form and kind != "vq":
                raise ValueError(
                    f"model.{name}.kind={kind}: expected vq with training.start=closed_form; give that, or "
                    "training.start=random"
                )
        if training.starts_in_closed_form:
            self._check_start()
        kinds = {self.model.global_codebook.kind, self.model.patch_codebook.kind}
        if loss.rate and kinds != {"fsq"}:
            raise ValueError(
                f"training.loss.rate={loss.rate}: expected 0 with vq codebooks, whose codes have no differentiable rate"
            )

    def _check_start(self) -> None:
        """A codebook needs as many vectors as it has codewords, each of them at least once."""
        model, crops = self.model, self.training.start_crops
        sizes = model.global_codebook.vocab_size, model.patch_codebook.vocab_size
        vectors = crops, (crops // PATCHED_SHARE) * model.num_patches
        need = max(
            sizes[0] if model.num_globals else 1, PATCHED_SHARE * math.ceil(sizes[1] / model.num_patches)
        )
        if crops < need:
            raise ValueError(
                f"training.start_crops={crops}: gives {vectors[0]} thumbnails and {vectors[1]} patches for codebooks "
                f"of {sizes[0]} and {sizes[1]}; expected at least {need}, or smaller codebooks"
            )
