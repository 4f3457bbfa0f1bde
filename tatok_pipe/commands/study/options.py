"""The options of study, of its arms and of its stages."""

from __future__ import annotations

from tatok_pipe.config.options import config_dataclass, option, section
from tatok_pipe.config.shared_options import ProgressConfig
from tatok_pipe.evaluation.options import FeaturesConfig
from tatok_pipe.ray_runtime.options import ActorsConfig
from tatok_pipe.runs.shard_queue import FailuresConfig
from tatok_pipe.storage.settings import STORAGE_HELP, StorageConfig
from tatok_pipe.tokenizer.options import DTFConfig

BUDGETS = ("steps", "seconds")


@config_dataclass
class ArmConfig:
    """What an arm may say after its name."""

    tokenizer: list[str] = option([], help="options of train_tokenizer, beside those of the study")
    checkpoint: str | None = option(
        None,
        help="a tokenizer that is there, instead of one that the study trains: output.url of train_tokenizer, or "
        "'packaged'; null: trained",
        is_url=True,
    )
    dtf: DTFConfig = section(DTFConfig, help="which patch tokens are kept")
    generator: list[str] = option([], help="options of train_ar, beside those of the study")


@config_dataclass
class StageConfig:
    """What a stage may say after its name."""

    arms: list[str] = option([], help="names of arms; empty: all")
    seeds: list[int] = option([0], at_least=0, help="seeds of generators and of what is drawn of them")
    budgets: list[str] = option(
        list(BUDGETS),
        choices=BUDGETS,
        help="what all generators have as much of: steps, or seconds, those that generator.steps of the first arm take",
    )

    def __post_init__(self) -> None:
        for name in ("seeds", "budgets"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name}={given}: expected at least one, each of them once")


@config_dataclass
class DataConfig:
    train: str = option(
        "",
        help="image shards to train on, on any URL: glob, {000..999} braces, @list.txt or a folder",
        is_url=True,
    )
    test: str = option(
        "",
        help="image shards that nothing is trained on, none of data.train; all that is measured is measured on them",
        is_url=True,
    )
    validation: str = option(
        "",
        help="image shards that trainings of tokenizers look at, to slow down where they come out worse than at the "
        "start; none of the others; not needed where every arm has a checkpoint",
        is_url=True,
    )
    num_classes: int = option(
        10, at_least=2, help="classes that the labels of the images are of", unit="classes"
    )
    image_size: int = option(
        32, at_least=8, help="side of the images, which every tokenizer has", unit="pixels"
    )


@config_dataclass
class TokenizersConfig:
    config: str = option("configs/tokenizer/quick32.yaml", help="YAML file of train_tokenizer", is_url=True)
    options: list[str] = option([], help="options of train_tokenizer that go before it, as key=value")
    per_seed: bool = option(
        False, help="a tokenizer for each seed; false: one for all, so that intervals are of generators alone"
    )


@config_dataclass
class GeneratorsConfig:
    options: list[str] = option(
        ["model.width=128", "model.depth=4", "model.heads=4"], help="options of train_ar, as key=value"
    )
    steps: int = option(600, at_least=1, help="length of a training at equal steps", unit="steps")
    images_per_step: int = option(
        64, at_least=1, help="of every arm alike, however long its images are", unit="images, mean"
    )
    timed_steps: int = option(
        12,
        at_least=2,
        help="of which the median is the time of a step of an arm, measured once",
        unit="steps",
    )


@config_dataclass
class MeasuresConfig:
    num_drawn: int = option(2_000, at_least=16, help="images drawn of each generator", unit="images")
    num_real: int = option(
        10_000, at_least=16, help="test images at most, as many of each shard", unit="images"
    )
    slots: int = option(64, at_least=1, help="images that are drawn at once, of every arm", unit="images")
    guidance: float = option(
        1.0,
        at_least=0,
        help="classifier-free guidance of the codes of drawn images, of every arm alike; 1: none, and half the work",
    )
    features: FeaturesConfig = section(FeaturesConfig, help="network of distances between sets of images")
    classifier_epochs: int = option(
        10,
        at_least=1,
        help="training of the classifier, whose features are the second network",
        unit="passes over data.train",
    )


@config_dataclass
class OutputConfig:
    url: str = option(
        "tatok_study",
        help="folder for study.html, results.json, timings.json and parts/, on any URL",
        is_url=True,
    )


@config_dataclass
class StudyConfig:
    data: DataConfig = section(DataConfig, help="the images")
    tokenizer: TokenizersConfig = section(TokenizersConfig, help="how tokenizers are trained")
    generator: GeneratorsConfig = section(GeneratorsConfig, help="how generators are trained")
    arms: list[str] = option(
        [],
        help="what is compared, the first with each of the others: NAME key=value …, with tokenizer=[…] (options of "
        "train_tokenizer), checkpoint=URL (a tokenizer that is there), dtf.… (as of tokenize_corpus) and generator=[…] "
        "(options of train_ar)",
    )
    stages: list[str] = option(
        ["all"],
        help="one after the other: NAME key=value …, with arms=[NAME, …] (all without it), seeds=[0, …] and "
        "budgets=[steps, seconds] (both without it)",
    )
    account: list[str] = option(
        [],
        help="names of arms, from the one that has least to the one that has all, each with one thing more than the "
        "one before: how many times better each makes it, which multiply to the whole; empty: none",
    )
    stage: str | None = option(None, help="only the stages up to this one; null: all")
    measures: MeasuresConfig = section(MeasuresConfig, help="how generators are measured")
    confidence: float = option(0.95, above=0, below=1, help="of intervals", unit="probability")
    output: OutputConfig = section(OutputConfig, help="where the results go")
    cpus: float | None = option(
        None,
        above=0,
        help="CPUs of a training, and of an actor that measures; null: all of a node, and at most 4",
        unit="CPUs",
    )
    actors: ActorsConfig = section(ActorsConfig, help="Ray actors that tokenize")
    failures: FailuresConfig = section(FailuresConfig, help="what is tried again, and for how long")
    progress: ProgressConfig = section(ProgressConfig, help="what is printed meanwhile")
    storage: StorageConfig = section(StorageConfig, help=STORAGE_HELP)
    dry_run: bool = option(False, help="print the parts with an estimate of hours and disk, and make none")
