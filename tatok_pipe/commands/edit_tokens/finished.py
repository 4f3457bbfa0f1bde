"""That a dataset is edited when its run has come to its end, and not before."""

from __future__ import annotations

from collections.abc import Collection

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.tokens.summary import tell_unfinished


def check_finished(url: str, names: Collection[str]) -> None:
    """Raise UserError where token shards that are planned are not among the `names` of those there. A run that could
    not do some, and said so, is finished."""
    if told := tell_unfinished(url, names, with_failed=False):
        raise UserError(
            f"{storage.redact(url)}: {told}; let the tokenize_corpus command that makes it come to its end before"
        )
