"""The options of edit_tokens."""

from __future__ import annotations

from tatok_pipe.config.options import config_dataclass, option, section
from tatok_pipe.storage.settings import STORAGE_HELP, StorageConfig


@config_dataclass
class InputConfig:
    url: str = option("tatok_out", help="folder of the token dataset, on any URL; it is changed", is_url=True)


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
        "that hold one value a row, =, !=, <, <=, >, >=, in (…), is null, and, or, not, parentheses, 'text' in quotes",
    )


@config_dataclass
class EditTokensConfig:
    input: InputConfig = section(InputConfig, help="what to edit")
    remove: RemoveConfig = section(RemoveConfig, help="which rows go; with both, those that either means")
    storage: StorageConfig = section(StorageConfig, help=STORAGE_HELP)
    dry_run: bool = option(False, help="print what would be removed, and change nothing")
