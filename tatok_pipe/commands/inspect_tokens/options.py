"""The options of inspect_tokens."""

from __future__ import annotations

from tatok_pipe.config.options import config_dataclass, option, section
from tatok_pipe.storage.settings import STORAGE_HELP, StorageConfig
from tatok_pipe.tokenizer.options import PACKAGED

NO_REPORT = "none"
REPORT_FILE = "report.html"


@config_dataclass
class InputConfig:
    url: str = option("tatok_out", help="folder of the token dataset, on any URL", is_url=True)
    version: int | None = option(
        None,
        at_least=1,
        help="report on an earlier version of the dataset, while its token shards are there; null: what is there now",
    )
    image_shards: int = option(
        24,
        at_least=0,
        help="image shards opened for originals and source sizes, at most; 0: none",
        unit="shards",
    )

    other_stores: bool = option(
        False,
        help="open image shards, and the tokenizer, also where the dataset names them in another store (protocol, and "
        "host or bucket) than its own",
    )


@config_dataclass
class CheckpointConfig:
    checkpoint: str | None = option(
        None,
        help=f"output.url of train_tokenizer, or its tokenizer/, on any URL, or {PACKAGED!r}; null: the packaged one "
        "or the one that the dataset names, whichever made the tokens",
        is_url=True,
    )


@config_dataclass
class OutputConfig:
    report: str | None = option(
        None,
        help=f"where the page goes, on any URL; null: <input.url>/{REPORT_FILE}; {NO_REPORT!r}: only the table",
        is_url=True,
    )


@config_dataclass
class GalleryConfig:
    images: int = option(
        4,
        at_least=0,
        help="images shown of each group: cheapest, median and dearest; 0: no gallery",
        unit="images, per group",
    )


@config_dataclass
class QuarantineConfig:
    export: str | None = option(
        None,
        help="no report: read the image shards again and write the samples that were quarantined to this folder, on "
        "any URL, a file each, with quarantine.jsonl, which has their reasons; exit code 1 where an image shard cannot "
        "be read",
        is_url=True,
    )


@config_dataclass
class InspectTokensConfig:
    input: InputConfig = section(InputConfig, help="what to report on")
    output: OutputConfig = section(OutputConfig, help="where the report goes")
    tokenizer: CheckpointConfig = section(CheckpointConfig, help="what to reconstruct images with")
    gallery: GalleryConfig = section(GalleryConfig, help="pictures in the report")
    quarantine: QuarantineConfig = section(QuarantineConfig, help="what gave no row")
    storage: StorageConfig = section(StorageConfig, help=STORAGE_HELP)
    verify: bool = option(
        False,
        help="no report: read all of the dataset again and list what is wrong with it; exit code 0 where nothing is, "
        "else 1",
    )
    repair: bool = option(
        False,
        help="verify, then remove broken token shards that can be made again from their image shards (by running the "
        "same tokenize_corpus command again) and leftovers of killed jobs; nothing else is removed. Exit code 0 where "
        "nothing is wrong any more but for shards to be made again, 1 where damage had to be left",
    )
    watch: bool = option(
        False,
        help="no report: show how far the run that writes input.url is, until it ends, here and as progress.html, "
        "beside where the report would be; input.url may be what tokenize_corpus, edit_tokens, pack_images, generate "
        "or evaluate write. Exit code 0 where the run came to its end, 1 where it ended otherwise or seems to have "
        "died",
    )

    def __post_init__(self) -> None:
        others = (
            self.verify,
            self.repair,
            self.quarantine.export is not None,
            self.input.version is not None,
        )
        if self.watch and any(others):
            raise ValueError(
                "watch: expected alone, without verify, repair, quarantine.export and input.version; give one of them"
            )
        if self.quarantine.export is not None and (self.verify or self.repair):
            raise ValueError(
                f"quarantine.export={self.quarantine.export}: expected null with verify and repair; give one of them"
            )
        if self.input.version is not None and (self.verify or self.repair):
            raise ValueError(
                f"input.version={self.input.version}: expected null with verify and repair, which look at what is "
                "there now"
            )
