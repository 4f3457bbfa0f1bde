"""The options of edit_tokens."""

from __future__ import annotations

from tatok_pipe.commands.inspect_tokens.options import CheckpointConfig
from tatok_pipe.config.options import config_dataclass, option, section
from tatok_pipe.config.shared_options import ProgressConfig
from tatok_pipe.storage.settings import STORAGE_HELP, StorageConfig
from tatok_pipe.tokenizer.options import DTFConfig
from tatok_pipe.tokens.exporting.table import EXPORTERS


@config_dataclass
class InputConfig:
    url: str = option(
        "tatok_out",
        help="folder of the token dataset, on any URL; it is changed, unless output.url is given",
        is_url=True,
    )
    other_stores: bool = option(
        False,
        help="open the tokenizer also where the dataset names it in another store (protocol, and host or bucket) than "
        "its own",
    )


@config_dataclass
class OutputConfig:
    url: str | None = option(
        None,
        help="filter again: folder of the dataset that is made of the other one, on any URL, whose rows hold scores "
        "(record.scores of tokenize_corpus); with export, the folder that is written; null: nothing is made",
        is_url=True,
    )


@config_dataclass
class RemoveConfig:
    keys: str | None = option(
        None,
        help="what goes, with all its crops: a key, wherever it is, or TOKEN_SHARD/KEY; or @keys.txt, on any URL, with "
        "one of these a line",
        is_url=True,
    )
    where: str | None = option(
        None,
        help="what goes, with all its crops: rows of which this is true, as 'label=3 and num_tokens < 40': columns "
        "that hold one value a row, joined ones too, =, !=, <, <=, >, >=, in (…), is null, and, or, not, parentheses, "
        "'text' in quotes",
    )


@config_dataclass
class JoinConfig:
    table: str | None = option(
        None,
        help="join columns: a Parquet file, or a folder of them, on any URL, with a row a key; the dataset keeps the "
        "columns beside its token shards, for conditions (remove.where, input.where of train_ar), trainings and the "
        "report; null: nothing is joined",
        is_url=True,
    )
    key: str = option(
        "key",
        help="its column of keys, as the rows have them, or TOKEN_SHARD/KEY where several token shards have one",
    )
    columns: list[str] = option([], help="the columns to join; []: all but the key")
    missing: str = option(
        "error",
        choices=("error", "empty"),
        help="rows of the dataset that the table has no key for: stop and say so before anything is changed, or leave "
        "them without a value",
    )
    replace: bool = option(False, help="columns that were joined before may get other values")


@config_dataclass
class EditTokensConfig:
    input: InputConfig = section(InputConfig, help="what to edit")
    remove: RemoveConfig = section(RemoveConfig, help="which rows go; with both, those that either means")
    join: JoinConfig = section(JoinConfig, help="columns that come to the rows, by key")
    output: OutputConfig = section(OutputConfig, help="where a filtered dataset goes")
    filter: DTFConfig = section(
        DTFConfig, help="which patch tokens are kept in it, as dtf of tokenize_corpus"
    )
    tokenizer: CheckpointConfig = section(
        CheckpointConfig, help="whose calibration has the values of filters"
    )
    progress: ProgressConfig = section(ProgressConfig, help="what is printed meanwhile")
    storage: StorageConfig = section(StorageConfig, help=STORAGE_HELP)
    export: str | None = option(
        None,
        choices=tuple(EXPORTERS),
        help="write all rows to output.url for another loader: "
        + ", ".join(f"{name} ({each.help})" for name, each in EXPORTERS.items()),
    )
    dry_run: bool = option(False, help="print what would be done, and change nothing")

    def __post_init__(self) -> None:
        if self.output.url is None and self.filter != DTFConfig():
            raise ValueError("filter: expected output.url with it, where the filtered dataset goes")
        if self.output.url is not None and (self.remove.keys, self.remove.where) != (None, None):
            raise ValueError(
                f"output.url={self.output.url}: is for filter and export; remove changes input.url itself, give one "
                "of them"
            )
        if self.export is not None and (self.output.url is None or self.filter != DTFConfig()):
            raise ValueError(
                f"export={self.export}: expected output.url with it, where it goes, and no filter"
            )
        others = (self.remove.keys, self.remove.where, self.output.url)
        if self.join.table is not None and others != (None, None, None):
            raise ValueError(
                f"join.table={self.join.table}: is an edit of its own; give it without remove and output.url"
            )
        if self.join.table is None and self.join != JoinConfig():
            raise ValueError("join: expected join.table with it, the table whose columns are joined")
