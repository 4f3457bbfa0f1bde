"""Where the files of a token dataset are.

<url>/_dataset.json              written first: format, token spec, description
<url>/README.md                  tells Hugging Face `datasets` where the rows are; a file of the user is left
<url>/quarantine/<name>.parquet  written before the data file of the same shard
<url>/data/<name>.parquet        its arrival is the commit of the shard
<url>/_index.parquet             a cache of the footers of data/; may be missing, stale or deleted at any time
<url>/_summary.json              written last, rewritten by every finished run
<url>/_removed.parquet           SHA-256 of the keys that were removed and must not come back; may be missing
<url>/columns/<name>.<mark>.parquet  columns that were joined to the rows of a token shard later, by key
<url>/_columns.json              which columns those are, and the file of each token shard; may be missing
<url>/_versions/<number>.json    which token shards came and went with a finished run; never changed
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tatok_pipe import storage

DATASET_FILE = "_dataset.json"
CARD_FILE = "README.md"
INDEX_FILE = "_index.parquet"
SUMMARY_FILE = "_summary.json"
REMOVED_FILE = "_removed.parquet"
VERSIONS_DIRECTORY = "_versions"
COLUMNS_FILE = "_columns.json"
COLUMNS_DIRECTORY = "columns"
DATA_DIRECTORY = "data"
QUARANTINE_DIRECTORY = "quarantine"
SUFFIX = ".parquet"


def data_url(url: str, name: str) -> str:
    """The Parquet file of the token shard `name` in the dataset at `url`."""
    return storage.join(url, DATA_DIRECTORY, name + SUFFIX)


def quarantine_url(url: str, name: str) -> str:
    """The quarantine file of the token shard `name`; there is none where nothing was quarantined."""
    return storage.join(url, QUARANTINE_DIRECTORY, name + SUFFIX)


def to_json_file(content: Mapping[str, Any]) -> bytes:
    """The bytes of a JSON file of the dataset: equal content, equal bytes."""
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()
