"""The options of evaluate."""

from __future__ import annotations

from tatok_pipe.config.options import config_dataclass, option, section
from tatok_pipe.config.shared_options import DEMO, DEMO_FOLDER, ProgressConfig
from tatok_pipe.evaluation.options import FeaturesConfig
from tatok_pipe.ray_runtime.options import ActorsConfig
from tatok_pipe.runs.shard_queue import FailuresConfig
from tatok_pipe.storage.settings import OTHER_STORES_HELP, STORAGE_HELP, StorageConfig
from tatok_pipe.tokenizer.options import PACKAGED, DTFConfig

ALL = "all"


@config_dataclass
class OutputConfig:
    url: str = option(
        "tatok_evaluation", help="folder for results and reports, one for each suite, on any URL", is_url=True
    )


@config_dataclass
class GenerationConfig:
    num_images: int = option(128, at_least=2, help="images drawn of each generator", unit="images")
    guidance: float = option(
        1.0, at_least=0, help="classifier-free guidance, for generators that were trained for it; 1: none"
    )


@config_dataclass
class EvaluateConfig:
    suite: str = option(
        ALL,
        help="what to evaluate: reconstruction, rate_distortion, fine_detail, information, generation, corpus, several "
        f"of them with commas between, or {ALL!r}: every one that has what it needs",
    )
    tokenizer: str = option(
        PACKAGED,
        help=f"output.url of train_tokenizer, or its tokenizer/, on any URL, or {PACKAGED!r}",
        is_url=True,
    )
    baseline: str | None = option(
        None,
        help="tokenizer to compare with, without globals, as unfiltered patch tokens: output.url of train_tokenizer, "
        "or its tokenizer/; null: none",
        is_url=True,
    )
    data: str | None = option(
        DEMO,
        help="image shards that the tokenizer was not trained on, on any URL: glob, {000..999} braces, @list.txt or a "
        f"folder; or a folder of images, or a manifest; {DEMO!r} makes a small corpus in ./{DEMO_FOLDER}; null: none, "
        "for the suite corpus",
        is_url=True,
    )
    other_stores: bool = option(False, help=OTHER_STORES_HELP)
    max_images: int = option(
        200,
        at_least=2,
        help="images to evaluate on, as many of each shard as equal shares allow",
        unit="images",
    )
    dtf: DTFConfig = section(DTFConfig, help="the filter that is evaluated")
    features: FeaturesConfig = section(FeaturesConfig, help="network of distances between sets of images")
    generator: str | None = option(
        None, help="folder of a generator of this tokenizer's tokens; null: none", is_url=True
    )
    baseline_generator: str | None = option(
        None, help="generator of the baseline's tokens, of equal size and steps; null: none", is_url=True
    )
    generation: GenerationConfig = section(GenerationConfig, help="what is drawn of the generators")
    tokens: str | None = option(None, help="token dataset, for the suite corpus; null: none", is_url=True)
    other_tokens: str | None = option(
        None, help="token dataset that it is compared with; null: none", is_url=True
    )
    output: OutputConfig = section(OutputConfig, help="where the results go")
    compare: str = option(
        "", help="results.json of earlier runs, with commas between, to draw over the plots of the same suite"
    )
    confidence: float = option(0.95, above=0, below=1, help="of intervals", unit="probability")
    seed: int = option(0, at_least=0, help="seed of resampling, of controls and of what is drawn")
    actors: ActorsConfig = section(ActorsConfig, help="Ray actors; each measures whole parts")
    failures: FailuresConfig = section(FailuresConfig, help="what is tried again, and for how long")
    progress: ProgressConfig = section(ProgressConfig, help="what is printed meanwhile")
    storage: StorageConfig = section(StorageConfig, help=STORAGE_HELP)
