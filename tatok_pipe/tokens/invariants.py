"""What every row of format 3 obeys: of one record before it is written, of a whole table after it is read.

Letters: B rows, K globals, M kept of N patches, V_g and V_p codes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from tatok_pipe.records import TokenRecord
from tatok_pipe.tokens.columns import list_lengths, to_numpy
from tatok_pipe.tokens.spec import TokenSpec

# Half of the distance of two float32 values: relative where they are normal, absolute below 2^-126.
_HALF_ULP = 2.0**-24
_HALF_STEP_SUBNORMAL = 2.0**-150
_NOT_FINITE = "a score of a patch is not a finite number"


def check_record(record: TokenRecord, spec: TokenSpec) -> None:
    """Raise ValueError naming the key where a row breaks the format."""
    problem = _find_problem(record, spec)
    if problem:
        raise ValueError(f"row {record.key!r}: {problem}")


def check_table(table: pa.Table, spec: TokenSpec) -> None:
    """Raise ValueError naming the key of a row, in the columns of `token_schema`, that breaks the format.

    Beyond what `check_record` asks for, a stored row tells its number of tokens, and where it has the entropies
    of all patches they must give its sums.
    """
    for batch in table.to_batches():
        _Batch(batch, spec).check()


def _find_problem(record: TokenRecord, spec: TokenSpec) -> str | None:
    if problem := _plain_problem(record.key, record.width, record.height, record.crop):
        return problem
    num_globals, num_kept = len(record.global_codes), len(record.patch_codes)
    positions = np.asarray(record.patch_positions, np.int64)
    if num_globals != spec.num_globals:
        return f"{num_globals} global codes, expected {spec.num_globals}"
    if len(positions) != num_kept:
        return f"{num_kept} patch codes but {len(positions)} positions"
    if not (positions[1:] > positions[:-1]).all():
        return "patch positions are not strictly increasing"
    for name, values, limit in (
        ("patch position", positions, spec.num_patches),
        ("global code", record.global_codes, spec.global_vocab),
        ("patch code", record.patch_codes, spec.patch_vocab),
    ):
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < limit:
            return f"{name}s from {values.min()} to {values.max()}, expected 0 to {limit - 1}"
    for name in ("entropy_total", "entropy_dropped"):
        value = getattr(record, name)
        if not (math.isfinite(value) and value >= 0):
            return _not_nats(name, value)
    if record.entropy_dropped > _next_float32(np.array(record.entropy_total, np.float32)):
        return _too_much_dropped(record.entropy_dropped, record.entropy_total)
    if record.mutual_information is not None and not math.isfinite(record.mutual_information):
        return f"mutual_information={record.mutual_information}, expected a finite number of nats"
    if record.patch_entropy is not None and len(record.patch_entropy) != spec.num_patches:
        return f"{len(record.patch_entropy)} patch entropies, expected {spec.num_patches}"
    return _score_problem(record, spec)


def _score_problem(record: TokenRecord, spec: TokenSpec) -> str | None:
    scores = record.patch_score
    if not spec.has_scores:
        return None if scores is None else "scores of its patches, expected none"
    if scores is None or len(scores) != spec.num_patches:
        return f"{0 if scores is None else len(scores)} scores of patches, expected {spec.num_patches}"
    if record.patch_entropy is None:
        return "scores of its patches without their entropies"
    return None if np.isfinite(scores).all() else _NOT_FINITE


class _Batch:
    """The same rules for B rows at once."""

    def __init__(self, batch: pa.RecordBatch, spec: TokenSpec) -> None:
        self.batch = batch
        self.spec = spec
        self.kept = list_lengths(batch.column("patch_codes"))  # (B,)
        self.rows = np.repeat(np.arange(len(self.kept)), self.kept)  # (sum of M,): whose each patch token is
        self.positions = to_numpy(batch.column("patch_positions").flatten()).astype(np.int64)  # (sum of M,)
        self.total = to_numpy(batch.column("entropy_total"))  # (B,) nats
        self.dropped = to_numpy(batch.column("entropy_dropped"))  # (B,) nats

    def check(self) -> None:
        self._check_plain()
        self._check_lists()
        self._check_entropies()
        self._check_patch_entropies()
        if self.spec.has_scores:
            self._check_scores()

    def _check_plain(self) -> None:
        names = ("key", "width", "height", "crop")
        keys, widths, heights, crops = columns = [self.batch.column(name).to_pylist() for name in names]
        is_bad = np.array([not key for key in keys], bool)
        for numbers, least in ((widths, 1), (heights, 1), (crops, 0)):
            is_bad |= np.array(numbers, np.int64) < least
        self._refuse(is_bad, lambda row: _plain_problem(*(column[row] for column in columns)) or "")
        for row, text in enumerate(self.batch.column("meta").to_pylist()):
            if text is not None and not _is_json(text):
                self._refuse_rows(np.array([row]), lambda row: "its meta is no JSON")

    def _check_lists(self) -> None:
        spec, kept = self.spec, self.kept
        num_positions = list_lengths(self.batch.column("patch_positions"))
        self._refuse(
            kept != num_positions, lambda row: f"{kept[row]} patch codes but {num_positions[row]} positions"
        )
        num_tokens = to_numpy(self.batch.column("num_tokens"))
        self._refuse(
            num_tokens != spec.num_globals + kept,
            lambda row: f"num_tokens={num_tokens[row]}, expected {spec.num_globals} + {kept[row]}",
        )
        is_behind = (self.positions[1:] <= self.positions[:-1]) & (self.rows[1:] == self.rows[:-1])
        self._refuse_rows(self.rows[1:][is_behind], lambda row: "patch positions are not strictly increasing")
        global_rows = np.repeat(np.arange(len(kept)), spec.num_globals)  # (B K,)
        for name, column, rows, limit in (
            ("patch position", "patch_positions", self.rows, spec.num_patches),
            ("global code", "global_codes", global_rows, spec.global_vocab),
            ("patch code", "patch_codes", self.rows, spec.patch_vocab),
        ):
            values = to_numpy(self.batch.column(column).flatten())
            places = np.flatnonzero(values >= limit)  # all are unsigned
            if len(places):
                message = f"{name} {values[places[0]]}, expected 0 to {limit - 1}"
                self._refuse_rows(rows[places], lambda row: message)  # noqa: B023

    def _check_entropies(self) -> None:
        for name, nats in (("entropy_total", self.total), ("entropy_dropped", self.dropped)):
            self._refuse(~(np.isfinite(nats) & (nats >= 0)), lambda row: _not_nats(name, nats[row]))  # noqa: B023
        self._refuse(
            self.dropped > _next_float32(self.total),
            lambda row: _too_much_dropped(self.dropped[row], self.total[row]),
        )
        information = self.batch.column("mutual_information").fill_null(0.0).to_numpy()
        self._refuse(
            ~np.isfinite(information),
            lambda row: f"mutual_information={information[row]}, expected a finite number of nats",
        )

    def _check_patch_entropies(self) -> None:
        column, num_patches = self.batch.column("patch_entropy"), self.spec.num_patches
        present = column.is_valid().to_numpy(zero_copy_only=False)
        lengths = list_lengths(column, missing=num_patches)
        self._refuse(
            lengths != num_patches,
            lambda row: f"{lengths[row]} patch entropies, expected {num_patches}",
        )
        if not present.any():
            return
        stored = np.zeros((len(present), num_patches))  # (B, N) nats
        stored[present] = to_numpy(column.flatten()).reshape(-1, num_patches)
        self._refuse(
            np.any(~(np.isfinite(stored) & (stored >= 0)), axis=1),
            lambda row: "a patch entropy is not a finite number of nats, at least 0",
        )
        totals = stored.sum(1)
        kept_nats = stored[self.rows, self.positions]  # (sum of M,)
        kept = np.bincount(self.rows, kept_nats, minlength=len(present))  # (B,)
        # What rounding N entropies and a sum to float32 can make of a sum of nats at most.
        slack = self.total.astype(np.float64) * (_HALF_ULP + 2.0**-22) + num_patches * _HALF_STEP_SUBNORMAL
        for name, nats, sums in (
            ("entropy_total", self.total, totals),
            ("entropy_dropped", self.dropped, totals - kept),
        ):
            self._refuse(
                present & (np.abs(sums - nats) > slack),
                lambda row: f"{name}={nats[row]}, its patch entropies give {sums[row]:.6g}",  # noqa: B023
            )

    def _check_scores(self) -> None:
        scores = to_numpy(self.batch.column("patch_score").flatten()).reshape(
            -1, self.spec.num_patches
        )  # (B, N)
        self._refuse(np.any(~np.isfinite(scores), axis=1), lambda row: _NOT_FINITE)
        missing = self.batch.column("patch_entropy").is_null().to_numpy(zero_copy_only=False)
        self._refuse(missing, lambda row: "scores of its patches without their entropies")

    def _refuse(self, is_bad: np.ndarray, describe: Callable[[int], str]) -> None:
        self._refuse_rows(np.flatnonzero(is_bad), describe)

    def _refuse_rows(self, bad: np.ndarray, describe: Callable[[int], str]) -> None:
        if len(bad):
            row = int(bad[0])
            raise ValueError(f"row {self.batch.column('key')[row].as_py()!r}: {describe(row)}")


def _plain_problem(key: str, width: int, height: int, crop: int) -> str | None:
    if not key:
        return "its key is empty"
    if width < 1 or height < 1:
        return f"a source of {width} × {height} pixels"
    if crop < 0:
        return f"crop {crop}, expected 0 or more"
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _next_float32(nats: np.ndarray) -> np.ndarray:
    """One step above float32 `nats`.

    Total and dropped entropy are float64 sums of the same numbers, one of them of fewer, and agree to about 1e-13;
    the total is then rounded to the nearest float32 and the dropped one towards zero. So where all is dropped the
    stored values may be one step apart, and no more.
    """
    return np.nextafter(nats, np.float32(np.inf))


def _not_nats(name: str, value: float) -> str:
    return f"{name}={value}, expected a finite number of nats, at least 0"


def _too_much_dropped(dropped: float, total: float) -> str:
    return f"entropy_dropped={dropped}, expected at most entropy_total={total}"
