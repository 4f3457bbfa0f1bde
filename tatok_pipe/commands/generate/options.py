"""The options of generate."""

from __future__ import annotations

from tatok_pipe.ar.generation.layout import IMAGE_FORMATS, LAYOUTS
from tatok_pipe.ar.options import SamplingConfig
from tatok_pipe.config.options import config_dataclass, option, section
from tatok_pipe.config.shared_options import ProgressConfig
from tatok_pipe.ray_runtime.options import ActorsConfig
from tatok_pipe.runs.shard_queue import FailuresConfig
from tatok_pipe.storage.settings import STORAGE_HELP, StorageConfig
from tatok_pipe.tokenizer.options import PACKAGED


@config_dataclass
class StartConfig:
    url: str = option(
        "",
        help="token dataset to start from: image i keeps a part of row i (after the last row the first again), the "
        "rest is drawn; empty: all is drawn",
        is_url=True,
    )
    keep_globals: bool = option(True, help="keep the global tokens")
    rows: str = option(
        "",
        help="keep the patches in these rows of the grid, FROM:TO, as they are; empty: none",
        unit="patches",
    )
    columns: str = option("", help="of these rows, only the columns FROM:TO; empty: all", unit="patches")


@config_dataclass
class DeviceConfig:
    slots: int | None = option(
        None,
        at_least=1,
        help="images that are drawn at once; null: as the output was begun, a new one 256 on GPUs, 32 on CPUs",
        unit="images per actor",
    )
    precision: str = option(
        "auto",
        choices=("auto", "fp32", "bf16"),
        help="arithmetic of the generator; auto: as the output was begun, a new one bf16 on GPUs and fp32 on CPUs",
    )
    steps: str = option(
        "auto",
        choices=("auto", "c", "torch"),
        help="what computes it on CPUs in fp32: C, compiled where it runs, which takes a compiler on every machine, or "
        "torch, slower; they round differently; auto: as the output was begun, a new one C where this machine can",
    )

    def __post_init__(self) -> None:
        if self.steps == "c" and self.precision == "bf16":
            raise ValueError("steps=c with precision=bf16: expected fp32; give that, or steps=torch")


@config_dataclass
class OutputConfig:
    url: str = option("tatok_samples", help="folder for the images, on any URL", is_url=True)
    layout: str = option(
        "files", choices=LAYOUTS, help="a file for each image, or WebDataset shards with classes and tokens"
    )
    image_format: str = option("png", choices=IMAGE_FORMATS, help="both without loss")
    images_per_shard: int = option(
        500,
        at_least=1,
        help="images that an actor commits at once; what a crash may cost",
        unit="images per shard",
    )
    npz: bool = option(False, help="samples.npz with all images as arr_0, which ADM's evaluator reads")
    contact_sheet: int = option(64, at_least=0, help="images on contact_sheet.png; 0: none", unit="images")
    gallery: int = option(
        48,
        at_least=0,
        help="images on gallery.html, with class, tokens and where its patches are; 0: none",
        unit="images",
    )


@config_dataclass
class GenerateConfig:
    checkpoint: str = option(
        "tatok_generator",
        help="the generator: output.url of train_ar, or its generator/, on any URL",
        is_url=True,
    )
    tokenizer: str = option(
        PACKAGED,
        help="the tokenizer that its tokens were made with: output.url of train_tokenizer, or its tokenizer/, on any "
        f"URL, or {PACKAGED!r}",
        is_url=True,
    )
    classes: str = option(
        "all",
        help="what to generate where the condition is a class, taken in turn: all, none (without condition), or a list "
        "like 0-9,17,tabby of numbers and, where the token dataset had them, names",
    )
    embeddings: str | None = option(
        None,
        help="where the condition is an embedding: Parquet file with a column `embedding`, lists of numbers or "
        "tensors, whose rows are taken in turn; null: without condition",
        is_url=True,
    )
    num_images: int = option(16, at_least=1, help="how many", unit="images")
    target_tokens: int | None = option(
        None,
        help="about so many tokens an image, globals included, of a generator with model.num_budgets; null: as it "
        "comes",
        unit="tokens per image",
    )
    sampling: SamplingConfig = section(SamplingConfig, help="how tokens are drawn")
    start: StartConfig = section(StartConfig, help="parts of real images to keep")
    output: OutputConfig = section(OutputConfig, help="where the results go")
    device: DeviceConfig = section(DeviceConfig, help="what an actor does at once")
    actors: ActorsConfig = section(ActorsConfig, help="Ray actors, one device each")
    failures: FailuresConfig = section(FailuresConfig, help="what is tried again, and what is given up")
    progress: ProgressConfig = section(ProgressConfig, help="what is printed")
    storage: StorageConfig = section(StorageConfig, help=STORAGE_HELP)
    seed: int = option(0, at_least=0, help="images of another seed are other images")
