"""Every kind of damage, done to the files of a real dataset: it is found, named, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.records import Quarantined, TokenRecord
from tatok_pipe.tokens.checking.check import Damage
from tatok_pipe.tokens.checking.remedies import Finding, Remedy
from tatok_pipe.tokens.checking.repair import repair_dataset
from tatok_pipe.tokens.checking.verify import verify_dataset
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.format import (
    ShardWriter,
    read_quarantine,
    read_records,
    token_shard_name,
    write_quarantine,
)
from tatok_pipe.tokens.spec import TokenSpec
from tatok_pipe.tokens.summary import write_summary

from .damage import BAD, NUM_SHARDS, WITH_QUARANTINE, Made, flip, make, make_older

MakeRecords = Callable[..., list[TokenRecord]]


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def anywhere(
    request: pytest.FixtureRequest, tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> Made:
    base = str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_url")
    return make(base, tmp_path, token_spec, make_token_records)


@pytest.fixture
def made(tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords) -> Made:
    return make(str(tmp_path), tmp_path, token_spec, make_token_records)


def find_one(made: Made) -> Finding:
    (finding,) = verify_dataset(made.url)
    for text in (finding.message, finding.advice):
        assert text and text.isprintable()
    return finding


def test_a_whole_dataset_has_no_findings(anywhere: Made) -> None:
    calls = []
    assert verify_dataset(anywhere.url, on_progress=lambda *call: calls.append(call)) == []
    assert calls == [(number, NUM_SHARDS, 0) for number in range(1, NUM_SHARDS + 1)]


def test_known_files_beside_the_data_are_no_findings(made: Made) -> None:
    for name in ("report.html", "README.md", "_summary.json.bak"):
        made.put(name, b"anything")
    assert verify_dataset(made.url) == []


def break_statistics(footer: dict[bytes, bytes]) -> None:
    statistics = json.loads(footer[b"tatok.statistics"])
    statistics["entropy_dropped_units"] += 1
    footer[b"tatok.statistics"] = json.dumps(statistics).encode()


def break_format_version(footer: dict[bytes, bytes]) -> None:
    footer[b"tatok.format_version"] = b"2"


def swap_two_codes(rows: list[dict[str, Any]]) -> None:
    row = next(row for row in rows if len(row["patch_positions"]) > 1)
    row["patch_positions"] = row["patch_positions"][::-1]


def exchange_tokens(rows: list[dict[str, Any]]) -> None:
    for name in ("global_codes", "patch_codes", "patch_positions", "num_tokens"):
        rows[0][name], rows[1][name] = rows[1][name], rows[0][name]
    for name in ("entropy_total", "entropy_dropped", "patch_entropy"):
        rows[0][name], rows[1][name] = rows[1][name], rows[0][name]


DAMAGES: list[tuple[Damage, str, Callable[[Made, str], None]]] = [
    (Damage.UNREADABLE, "row group 0 cannot be read", lambda m, f: m.put(f, flip(m.read(f), 100))),
    (Damage.UNREADABLE, "is no whole Parquet file", lambda m, f: m.put(f, m.read(f)[:-20])),
    (Damage.UNREADABLE, "is no whole Parquet file", lambda m, f: m.put(f, b"")),
    (Damage.UNREADABLE, "token format version 2", lambda m, f: m.rewrite(f, footer=break_format_version)),
    (Damage.ROWS, "not strictly increasing", lambda m, f: m.rewrite(f, rows=swap_two_codes)),
    (Damage.STATISTICS, "num_images: 19, not 20", lambda m, f: m.rewrite(f, rows=lambda rows: rows.pop())),
    (Damage.CONTENT, "digest", lambda m, f: m.rewrite(f, rows=lambda rows: rows.reverse())),
    (Damage.CONTENT, "digest", lambda m, f: m.rewrite(f, rows=exchange_tokens)),
    (Damage.CONTENT, "digest", lambda m, f: m.rewrite(f, rows=lambda rows: rows[3].update(label=7777))),
    (Damage.CONTENT, "digest", lambda m, f: m.rewrite(f, rows=lambda rows: rows[3].update(width=9999))),
    (Damage.ROWS, "crop -5", lambda m, f: m.rewrite(f, rows=lambda rows: rows[3].update(crop=-5))),
    (Damage.ROWS, "0 × 7 pixels", lambda m, f: m.rewrite(f, rows=lambda rows: rows[3].update(width=0, height=7))),
    (Damage.ROWS, "its key is empty", lambda m, f: m.rewrite(f, rows=lambda rows: rows[3].update(key=""))),
    (Damage.ROWS, "its meta is no JSON", lambda m, f: m.rewrite(f, rows=lambda rows: rows[3].update(meta="{not"))),
    (Damage.STATISTICS, "entropy_dropped_units", lambda m, f: m.rewrite(f, footer=break_statistics)),
    (Damage.KEYS, "comes 2 times", lambda m, f: m.rewrite(
        f, rows=lambda rows: rows[7].update(key=rows[8]["key"], crop=rows[8]["crop"]))),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "message", "damage"), DAMAGES)
def test_a_damaged_data_file(
    made: Made, kind: Damage, message: str, damage: Callable[[Made, str], None]
) -> None:
    damage(made, made.data(2))
    finding = find_one(made)
    assert (finding.kind, finding.file, finding.remedy) == (kind, made.data(2), Remedy.MAKE_AGAIN)
    assert message in finding.message
    assert made.shards[2] in finding.advice
    assert not finding.is_harmless


def test_a_shard_of_other_settings(made: Made) -> None:
    other = dataclasses.replace(made.spec, dtf=dataclasses.replace(made.spec.dtf, value=0.5))
    made.remove(made.data(2))
    made.write_shard(made.shards[2], other)
    finding = find_one(made)
    assert (finding.kind, finding.file, finding.remedy) == (Damage.SPEC, made.data(2), Remedy.MAKE_AGAIN)
    assert "dtf.value: 0.5, not 0.25" in finding.message


def test_where_most_shards_are_of_other_settings_they_are_spared(made: Made) -> None:
    content = json.loads(made.read("_dataset.json"))
    content["spec"]["tokenizer_fingerprint"] = "another"
    made.put("_dataset.json", json.dumps(content).encode())
    made.remove(made.data(2))
    made.write_shard(made.shards[2], dataclasses.replace(made.spec, tokenizer_fingerprint="a third"))
    findings = [each for each in verify_dataset(made.url) if each.kind == Damage.SPEC]
    assert [each.remedy for each in findings] == [Remedy.NONE] * NUM_SHARDS
    assert "_dataset.json may be the wrong one" in findings[0].advice


def test_where_all_shards_agree_their_description_is_wrong(made: Made) -> None:
    whole, files = made.read("_dataset.json"), made.files()
    content = json.loads(whole)
    content["spec"]["dtf"]["value"] *= 2
    made.put("_dataset.json", json.dumps(content).encode())
    finding = next(each for each in verify_dataset(made.url) if each.kind == Damage.DATASET)
    assert (finding.file, finding.remedy) == ("_dataset.json", Remedy.REMOVE)
    assert "all 4 token shards were made with other settings: dtf.value" in finding.message
    repair_dataset(made.url, verify_dataset(made.url))
    made.run()
    assert (made.read("_dataset.json"), made.files()) == (whole, files)
    assert verify_dataset(made.url) == []


def test_a_renamed_shard(made: Made) -> None:
    other = f"data/{token_shard_name('s3://bucket/000002.tar')}.parquet"
    made.move(made.data(2), other)
    finding, lost = sorted(verify_dataset(made.url), key=lambda each: each.kind == Damage.LOST)
    assert (finding.kind, finding.file, finding.remedy) == (Damage.NAME, other, Remedy.MAKE_AGAIN)
    assert f"{made.names[2]}.parquet" in finding.message
    assert (lost.kind, lost.file, lost.remedy) == (Damage.LOST, made.data(2), Remedy.RUN)
    made.move(other, "data/copy.parquet")
    found = {each.file: each.kind for each in verify_dataset(made.url)}
    assert found == {"data/copy.parquet": Damage.NAME, made.data(2): Damage.LOST}


def test_what_a_name_comes_from_may_be_signed_or_relative(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The footer holds the URL without secrets, or as a path that was relative to somewhere else."""
    made.remove("_index.parquet")
    signed = "https://me:secret@host/x/000009.tar?X-Amz-Signature=abc&X-Amz-Date=1"
    for url, name in (
        (storage.redact(signed), token_shard_name(signed)),
        ("images/000002.tar", made.names[2]),
    ):

        def name_source(footer: dict[bytes, bytes], url: str = url) -> None:
            footer[b"tatok.source"] = json.dumps({**json.loads(footer[b"tatok.source"]), "url": url}).encode()

        file = f"data/{name}.parquet"
        made.rewrite(made.data(2), footer=name_source)
        if file != made.data(2):
            made.move(made.data(2), file)
        assert verify_dataset(made.url) == []
        monkeypatch.undo()
        if file != made.data(2):
            made.move(file, made.data(2))


def write_bad(made: Made, rows: list[Quarantined]) -> None:
    write_quarantine(made.work / "q.parquet", rows)
    made.put(made.quarantine(WITH_QUARANTINE), (made.work / "q.parquet").read_bytes())


@pytest.mark.parametrize(
    ("message", "damage"),
    [
        ("2 samples were quarantined, and there is no quarantine file",
            lambda m: m.remove(m.quarantine(WITH_QUARANTINE))),
        ("holds {'NotAnImage': 1}, the data file counts {'DuplicateKey': 1, 'NotAnImage': 1}",
            lambda m: write_bad(m, BAD[:1])),
        ("holds {'DuplicateKey': 1, 'Truncated': 1}, the data file counts",
            lambda m: write_bad(m, [dataclasses.replace(BAD[0], error="Truncated"), BAD[1]])),
        ("key 'image-000004' is a row and quarantined, too",
            lambda m: write_bad(m, [dataclasses.replace(BAD[0], key="image-000004"), BAD[1]])),
        ("is no whole Parquet file", lambda m: m.put(m.quarantine(WITH_QUARANTINE), b"PAR1")),
        ("cannot be read", lambda m: m.put(
            m.quarantine(WITH_QUARANTINE), flip(m.read(m.quarantine(WITH_QUARANTINE)), 30))),
        ("5 columns", lambda m: m.put(m.quarantine(WITH_QUARANTINE), m.read(m.data(2)))),
    ],
)  # fmt: skip
def test_a_damaged_quarantine_file(made: Made, message: str, damage: Callable[[Made], None]) -> None:
    damage(made)
    finding = find_one(made)
    assert (finding.kind, finding.file) == (Damage.QUARANTINE, made.quarantine(WITH_QUARANTINE))
    assert finding.remedy == Remedy.MAKE_AGAIN
    assert message in finding.message or "column" in finding.message


def test_a_quarantine_file_of_a_shard_that_quarantined_nothing(made: Made) -> None:
    made.put(made.quarantine(2), made.read(made.quarantine(WITH_QUARANTINE)))
    finding = find_one(made)
    assert (finding.kind, finding.file) == (Damage.QUARANTINE, made.quarantine(2))
    assert finding.message == "0 samples were quarantined, and there is a quarantine file"


def test_the_quarantined_duplicate_of_a_row_is_no_damage(made: Made) -> None:
    """A guard: shard 1 of the fixture has the key of a row in its quarantine."""
    rows = read_quarantine(storage.join(made.url, made.quarantine(WITH_QUARANTINE)))
    assert rows == BAD and BAD[1].key in {record.key for record in made.records(made.spec, 10, seed=1)}
    assert verify_dataset(made.url) == []


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        (Damage.ORPHAN, "quarantine/000009-0123abcd.parquet"),
        (Damage.TEMPORARY, "data/.000001-0123abcd.parquet.0123456789abcdef.tmp"),
        (Damage.TEMPORARY, "quarantine/.000001-0123abcd.parquet.fedcba9876543210.tmp"),
        (Damage.TEMPORARY, "._summary.json.00ff00ff00ff00ff.tmp"),
    ],
)
def test_leftovers(made: Made, kind: Damage, file: str) -> None:
    made.put(file, b"anything")
    for age_s, remedy in ((0, Remedy.NONE), (1800, Remedy.NONE), (3700, Remedy.REMOVE)):
        make_older(Path(made.url, file), age_s)
        finding = find_one(made)
        assert (finding.kind, finding.file, finding.remedy) == (kind, file, remedy)
        assert finding.is_harmless
        assert "running job" in finding.advice or remedy == Remedy.REMOVE


@pytest.mark.parametrize(
    "file", ["data/notes.txt", "data/other.parquet", "data/.hidden", "quarantine/x.parquet"]
)
def test_foreign_files(made: Made, file: str) -> None:
    made.put(file, b"anything")
    finding = find_one(made)
    assert (finding.kind, finding.file, finding.remedy) == (Damage.FOREIGN, file, Remedy.NONE)


def test_a_broken_footer_is_made_good_by_the_index(made: Made) -> None:
    made.put(made.data(2), made.read(made.data(2))[:-20])
    assert find_one(made).remedy == Remedy.MAKE_AGAIN
    made.remove("_index.parquet")
    finding = find_one(made)
    assert finding.remedy == Remedy.NONE
    assert "nothing tells which image shard it was made from" in finding.advice


def test_a_broken_footer_that_names_another_source_is_not_believed(made: Made) -> None:
    def name_another(footer: dict[bytes, bytes]) -> None:
        source = json.loads(footer[b"tatok.source"])
        footer[b"tatok.source"] = json.dumps({**source, "url": made.shards[3]}).encode()
        break_statistics(footer)

    made.rewrite(made.data(2), footer=name_another)
    made.remove("_index.parquet")
    assert find_one(made).remedy == Remedy.NONE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "its image shard cannot be read"),
        (lambda path: path.write_bytes(b"shorter"), "its image shard has changed since"),
    ],
)
def test_what_cannot_be_made_again_is_left(made: Made, change: Callable[[Path], None], message: str) -> None:
    made.put(made.data(2), flip(made.read(made.data(2)), 100))
    change(Path(made.shards[2]))
    finding = find_one(made)
    assert finding.remedy == Remedy.NONE
    assert message in finding.advice


def change_summary(made: Made, change: Callable[[dict[str, Any]], Any]) -> None:
    summary = json.loads(made.read("_summary.json"))
    change(summary)
    made.put("_summary.json", json.dumps(summary).encode())


@pytest.mark.parametrize(
    ("message", "damage"),
    [
        ("does not count what is there: num_tokens: 1, not",
            lambda m: change_summary(m, lambda s: s["statistics"].update(num_tokens=1))),
        ("counts 5 shards, 4 are there", lambda m: change_summary(m, lambda s: s.update(num_shards_committed=5))),
        ("figures are not those", lambda m: change_summary(m, lambda s: s["figures"].update(mean_tokens=1.0))),
        ("names 0 missing shards", lambda m: change_summary(m, lambda s: s.update(num_shards_planned=99))),
        ("is none (KeyError", lambda m: change_summary(m, lambda s: s.pop("statistics"))),
        ("is none (JSONDecodeError", lambda m: m.put("_summary.json", m.read("_summary.json")[:50])),
        ("is none (TypeError", lambda m: m.put("_summary.json", b"[1, 2]")),
    ],
)  # fmt: skip
def test_a_wrong_summary(made: Made, message: str, damage: Callable[[Made], None]) -> None:
    damage(made)
    finding = find_one(made)
    assert (finding.kind, finding.file, finding.remedy) == (Damage.SUMMARY, "_summary.json", Remedy.REWRITE)
    assert message in finding.message


def test_a_shard_that_is_gone_is_missed_for_as_long_as_it_is(made: Made) -> None:
    """By the index, by an index made afresh, and by the summary where there is no index any more."""
    whole = made.read(made.data(2))
    made.remove(made.data(2))

    def check(remedy: Remedy) -> None:
        lost = next(each for each in verify_dataset(made.url) if each.kind == Damage.LOST)
        assert (lost.file, lost.message, lost.remedy) == (made.data(2), "is gone, with 20 rows", remedy)

    check(Remedy.RUN)
    write_summary(made.url, planned=made.names[:2], failed={})
    check(Remedy.RUN)
    made.remove("_index.parquet")
    check(Remedy.RUN)
    Path(made.shards[2]).unlink()
    check(Remedy.NONE)
    repair_dataset(made.url, verify_dataset(made.url))
    check(Remedy.NONE)
    made.put(made.data(2), whole)
    write_summary(made.url, planned=made.names, failed={})
    assert verify_dataset(made.url) == []


def test_a_row_that_is_gone_with_a_footer_that_agrees(made: Made) -> None:
    """Only what the index remembers can tell; it goes on doing so when it is made afresh."""
    records = read_records(storage.join(made.url, made.data(2)))
    source = TokenDataset(made.url).shard_metadata(made.names[2]).source
    with ShardWriter(made.work / "less.parquet", made.spec, source) as writer:
        writer.append(records[:-1])
    made.put(made.data(2), (made.work / "less.parquet").read_bytes())
    made.remove("_summary.json")
    for _ in range(2):
        finding = find_one(made)
        assert (finding.kind, finding.file, finding.remedy) == (
            Damage.CONTENT,
            made.data(2),
            Remedy.MAKE_AGAIN,
        )
        write_summary(made.url, planned=made.names, failed={})
    repair_dataset(made.url, verify_dataset(made.url))
    made.run()
    assert read_records(storage.join(made.url, made.data(2)))[-1].key == records[-1].key
    assert verify_dataset(made.url) == []


def change_index(made: Made, column: str, *, by: int) -> None:
    """Two rows lie, and the sums are right."""
    table = pq.read_table(pa.BufferReader(made.read("_index.parquet")))
    values = table[column].to_pylist()
    values[2], values[3] = values[2] + by, values[3] - by
    place = table.schema.get_field_index(column)
    sink = pa.BufferOutputStream()
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(values)), sink)
    made.put("_index.parquet", sink.getvalue().to_pybytes())


@pytest.mark.parametrize(
    ("message", "damage"),
    [
        ("num_tokens: ", lambda m: change_index(m, "num_tokens", by=5)),
        ("source_size_bytes: ", lambda m: change_index(m, "source_size_bytes", by=512)),
        ("is of no use: ", lambda m: m.put("_index.parquet", b"PAR1garbage")),
    ],
)
def test_a_wrong_index(made: Made, message: str, damage: Callable[[Made], None]) -> None:
    damage(made)
    findings = verify_dataset(made.url)
    assert {(each.kind, each.file, each.remedy) for each in findings} == {
        (Damage.INDEX, "_index.parquet", Remedy.REWRITE)
    }
    assert message in findings[0].message
    repair_dataset(made.url, findings)
    assert verify_dataset(made.url) == []


def test_a_folder_among_the_data(made: Made) -> None:
    made.put(f"data/copies/{made.names[0]}.parquet", made.read(made.data(0)))
    finding = find_one(made)
    assert (finding.kind, finding.file) == (Damage.FOREIGN, "data/copies/")


def test_the_summary_of_an_earlier_run_is_true_of_it(made: Made) -> None:
    made.remove(made.data(2))
    made.run()
    earlier = made.read("_summary.json")
    change_summary(
        made, lambda summary: summary.update(num_shards_committed=3, missing_shards=[made.names[2]])
    )
    assert verify_dataset(made.url) == []
    made.put("_summary.json", earlier)
    made.remove("_summary.json")
    assert verify_dataset(made.url) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is broken .Expecting"),
        (b"[]", "is broken .no format version"),
        (b'{"format": 3}', "is broken .KeyError"),
        (b'{"format": 3, "spec": {}, "description": {}}', "is broken .ValueError: token spec has fields"),
        (b'{"format": 3, "spec": 5, "description": {}}', "is broken .TypeError"),
    ],
)
def test_a_broken_description_is_the_only_finding(made: Made, content: bytes, message: str) -> None:
    made.put("_dataset.json", content)
    finding = find_one(made)
    assert (finding.kind, finding.file, finding.remedy) == (Damage.DATASET, "_dataset.json", Remedy.REMOVE)
    assert re.search(message, finding.message)
    with pytest.raises(UserError, match=message):
        TokenDataset(made.url)


def test_several_damages_at_once_are_all_named(anywhere: Made) -> None:
    anywhere.put(anywhere.data(2), flip(anywhere.read(anywhere.data(2)), 100))
    anywhere.remove(anywhere.quarantine(WITH_QUARANTINE))
    anywhere.put("data/notes.txt", b"hello")
    found = {finding.file: finding.kind for finding in verify_dataset(anywhere.url)}
    assert found == {
        anywhere.data(2): Damage.UNREADABLE,
        anywhere.quarantine(WITH_QUARANTINE): Damage.QUARANTINE,
        "data/notes.txt": Damage.FOREIGN,
    }


def test_a_shard_that_cannot_be_read_now_is_not_called_broken(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = storage.read_bytes

    def refuse(url: str) -> bytes:
        if made.names[2] in url:
            raise PermissionError(f"{url}: forbidden")
        return read(url)

    monkeypatch.setattr(storage, "read_bytes", refuse)
    finding = find_one(made)
    assert (finding.kind, finding.remedy) == (Damage.UNREACHABLE, Remedy.NONE)
