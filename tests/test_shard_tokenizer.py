"""One shard through the whole chain, without Ray: nothing lost, bytes that depend on content alone, true figures."""

from __future__ import annotations

import hashlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tatok_pipe import storage
from tatok_pipe.encoding import shard_tokenizer
from tatok_pipe.encoding.sample_pipeline import SamplePipeline
from tatok_pipe.encoding.shard_tokenizer import ShardTokenizer, TokenizeJob, token_spec
from tatok_pipe.images.crops import CropConfig
from tatok_pipe.images.decode import DecodedCrops, decode_crops, decode_image
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.images.webdataset.samples import read_samples
from tatok_pipe.records import ImageSample
from tatok_pipe.tokenizer.analysis import psnr
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokenizer.options import DTFConfig
from tatok_pipe.tokenizer.scores.table import SCORES
from tatok_pipe.tokenizer.trainer import to_model_input
from tatok_pipe.tokens.checking.verify import verify_dataset
from tatok_pipe.tokens.commit import commit_shard
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.dataset_file import create_or_check

from .pictures import Member, crop_members, encode, hostile_members, small_tokenizer, write_shard


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def make_job(checkpoint: str, output: Path, dtf: DTFConfig | None = None, **changes: object) -> TokenizeJob:
    tokenizer = load_tokenizer(checkpoint)
    filter = tokenizer.filter(dtf or DTFConfig())
    spec = token_spec(tokenizer, filter, encoding={})
    job = TokenizeJob(
        checkpoint=checkpoint,
        output_url=str(output),
        spec=spec,
        filter=filter,
        preprocess=PreprocessConfig(image_size=spec.image_size),
        limits=ShardLimits(),
        precision="fp32",
        batch_size=4,
        mutual_information=True,
        patch_entropy=True,
    )
    create_or_check(str(output), spec, {})
    return replace(job, **changes)  # type: ignore[arg-type]


def digest(output: Path) -> dict[str, str]:
    files = [path for path in output.rglob("*.parquet")]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_hostile_sample_is_a_row_or_a_quarantine_row(checkpoint: str, tmp_path: Path) -> None:
    members, keys, errors = hostile_members()
    shard = write_shard(tmp_path / "hostile.tar", members)
    job = make_job(checkpoint, tmp_path / "out")
    result = ShardTokenizer(job, device="cpu", num_threads=2)(shard)
    assert result.error == ""
    dataset = TokenDataset(job.output_url)
    assert [row.key for row in dataset.rows()] == keys
    assert {row.key: row.error for _, row in dataset.quarantined()} == errors
    assert (result.num_images, result.num_quarantined) == (len(keys), len(errors))
    sizes = {row.key: (row.width, row.height) for row in dataset.rows()}
    assert sizes["line"] == (20000, 1) and sizes["pixel"] == (1, 1)
    assert sizes["rotated"] == (30, 40)
    assert all(row.label is None for row in dataset.rows())
    assert {path.name for path in tmp_path.iterdir()} == {"hostile.tar", "out"}


def test_the_footer_has_the_hash_of_what_was_read(checkpoint: str, tmp_path: Path) -> None:
    """Of a tar read once, of one read twice, and of a Parquet file, of which parts are read."""
    job = make_job(checkpoint, tmp_path / "out")
    crops = crop_members(4)
    apart = [
        *(each for each in crops if each[0].endswith(".cls")),
        *(c for c in crops if not c[0].endswith(".cls")),
    ]
    shards = [write_shard(tmp_path / "a.tar", crops), write_shard(tmp_path / "apart.tar", apart)]
    images = [data for name, data in crops if not name.endswith(".cls")]
    pq.write_table(pa.table({"image": images, "unread": [b"x" * 1000] * len(images)}), tmp_path / "b.parquet")
    tokenize = ShardTokenizer(job, device="cpu", num_threads=1)
    expected = []
    for shard in (*shards, str(tmp_path / "b.parquet")):
        assert tokenize(shard).error == ""
        expected.append(hashlib.sha256(Path(shard).read_bytes()).hexdigest())
    found = TokenDataset(job.output_url)
    sources = [found.shard_metadata(name).source for name in found.shards]
    assert sorted(source.sha256 for source in sources) == sorted(expected)
    assert {source.etag for source in sources} == {""}


@pytest.mark.parametrize("score", SCORES)
def test_bytes_do_not_depend_on_threads_or_runs(checkpoint: str, tmp_path: Path, score: str) -> None:
    shard = write_shard(tmp_path / "a.tar", crop_members(11) + hostile_members()[0])
    seen = []
    for name, threads, decoders in (("one", 1, 0), ("four", 4, 0), ("again", 4, 0), ("as on a GPU", 2, 3)):
        job = make_job(checkpoint, tmp_path / name, DTFConfig(score=score))
        tokenize = ShardTokenizer(job, device="cpu", num_threads=threads)
        if decoders:
            tokenize._pipeline = SamplePipeline(
                tokenize._decode, tokenize._encode, batch_size=4, num_lanes=threads, num_decoders=decoders
            )
        assert tokenize(shard).error == ""
        seen.append(digest(tmp_path / name))
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert len(seen[0]) == 2  # data and quarantine


def test_rows_decode_to_what_the_model_gave_in_memory(checkpoint: str, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", crop_members(9))
    job = make_job(checkpoint, tmp_path / "out")
    assert ShardTokenizer(job, device="cpu", num_threads=2)(shard).num_images == 9
    with storage.open_stream(shard) as stream:
        samples = [s for s in read_samples(stream, shard=shard) if isinstance(s, ImageSample)]
    images = to_model_input(np.stack([decode_image(s.image, job.preprocess)[0] for s in samples]), "cpu")
    model = load_tokenizer(checkpoint).model
    tokens = model.tokenize(images, job.filter, with_mutual_information=True)
    expected = model.decode(tokens.global_codes, tokens.patch_codes, tokens.keep)
    dataset = TokenDataset(job.output_url)
    rows = list(dataset.rows())
    assert [row.key for row in rows] == [s.key for s in samples]
    assert [row.label for row in rows] == [s.label for s in samples]
    got = dataset.decode(rows, model)
    assert torch.allclose(psnr(got, images), psnr(expected, images), atol=1e-4)
    for i, row in enumerate(rows):
        assert row.entropy_total == pytest.approx(float(tokens.patch_entropy[i].sum()), rel=1e-5)
        assert row.entropy_dropped <= row.entropy_total
        assert row.patch_entropy is not None
        assert np.allclose(row.patch_entropy, tokens.patch_entropy[i], rtol=1e-5)
        assert tokens.mutual_information is not None
        assert row.mutual_information == pytest.approx(float(tokens.mutual_information[i]), abs=1e-3)


@pytest.mark.parametrize("budget", [0.1, 3.0, 20.0, 33.333])
def test_a_budget_holds_for_the_stored_rows(checkpoint: str, tmp_path: Path, budget: float) -> None:
    shard = write_shard(tmp_path / "a.tar", crop_members(8))
    job = make_job(checkpoint, tmp_path / "out", DTFConfig(rule="budget", score="entropy", value=budget))
    assert ShardTokenizer(job, device="cpu", num_threads=1)(shard).error == ""
    dropped = [float(row.entropy_dropped) for row in TokenDataset(job.output_url).rows()]
    assert len(dropped) == 8 and all(value <= budget for value in dropped)
    assert budget < 4 or max(dropped) > budget - 6  # and the budget is used: one code costs at most 4.8 nats


def test_bf16_gives_nearly_the_same_codes(checkpoint: str, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", crop_members(6))
    rows = {}
    for precision in ("fp32", "bf16"):
        job = make_job(checkpoint, tmp_path / precision, DTFConfig(rule="none"), precision=precision)
        assert ShardTokenizer(job, device="cpu", num_threads=1)(shard).error == ""
        rows[precision] = list(TokenDataset(job.output_url).rows())
    pairs = list(zip(rows["fp32"], rows["bf16"], strict=True))
    # Without an encoder's network, codes are chosen in float32 alone; entropies are close, and no same computation.
    assert all(np.array_equal(exact.patch_codes, rough.patch_codes) for exact, rough in pairs)
    assert all(rough.entropy_total == pytest.approx(exact.entropy_total, rel=0.02) for exact, rough in pairs)
    assert any(rough.entropy_total != exact.entropy_total for exact, rough in pairs)


def test_a_result_counts_what_was_read_and_written(checkpoint: str, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", crop_members(10) + [("x.jpg", b"")])
    tokenize = ShardTokenizer(make_job(checkpoint, tmp_path / "out"), device="cpu", num_threads=2)
    result = tokenize(shard)
    status = tokenize.activity.status
    assert (result.num_images, result.num_quarantined) == (10, 1)
    rows = list(TokenDataset(str(tmp_path / "out")).rows())
    assert result.num_tokens == sum(row.num_tokens for row in rows)
    assert result.bytes_in == Path(shard).stat().st_size
    (data,) = (tmp_path / "out").glob("data/*.parquet")
    assert result.bytes_out == data.stat().st_size
    assert status.lane_busy_s > 0
    assert (status.shards, status.queued_samples, status.queued_batches) == ((), 0, 0)


def test_shards_called_at_once_overlap_and_stay_what_they_are(checkpoint: str, tmp_path: Path) -> None:
    shards = [write_shard(tmp_path / f"{i}.tar", crop_members(9, first=9 * i)) for i in range(4)]
    one_by_one = make_job(checkpoint, tmp_path / "one")
    tokenize = ShardTokenizer(one_by_one, device="cpu", num_threads=2)
    assert [tokenize(shard).error for shard in shards] == [""] * 4
    at_once = make_job(checkpoint, tmp_path / "four")
    tokenize = ShardTokenizer(at_once, device="cpu", num_threads=2)
    with ThreadPoolExecutor(4) as pool:
        assert [result.error for result in pool.map(tokenize, shards)] == [""] * 4
    assert digest(tmp_path / "four") == digest(tmp_path / "one")


def make_crop_job(checkpoint: str, output: Path, crops: CropConfig, **changes: object) -> TokenizeJob:
    """A job whose dataset says what crops it has, as tokenize_corpus writes it."""
    job = make_job(checkpoint, output / "other")
    spec = replace(job.spec, encoding=crops.to_encoding())
    create_or_check(str(output), spec, {})
    return replace(job, output_url=str(output), spec=spec, crops=crops, **changes)  # type: ignore[arg-type]


def decode_all(members: list[Member], crops: CropConfig) -> list[Member]:
    """Every crop of the pictures among `members` as a picture of its own."""
    pictures = [(name.rsplit(".", 1)[0], data) for name, data in members if not name.endswith(".cls")]
    return [
        (f"{key}-{number:02d}.png", encode(Image.fromarray(pixels)))
        for key, data in pictures
        for number, pixels in enumerate(decode_crops(data, PreprocessConfig(32), crops, key=key).pixels)
    ]


@pytest.mark.parametrize(
    "crops",
    [CropConfig("ten_crop"), CropConfig("random", count=3, flip="random"), CropConfig(flip="both")],
    ids=["ten_crop", "random", "both"],
)
def test_every_crop_is_a_row_and_a_bad_image_is_one(
    checkpoint: str, tmp_path: Path, crops: CropConfig
) -> None:
    members = crop_members(7)
    bad = [("bad.jpg", b"<html>"), ("cut.png", members[0][1][:300])]
    shard = write_shard(tmp_path / "a.tar", [*members[:6], *bad, *members[6:]])
    job = make_crop_job(checkpoint, tmp_path / "out", crops)
    tokenize = ShardTokenizer(job, device="cpu", num_threads=2)
    result = tokenize(shard)
    keys = [name.rsplit(".", 1)[0] for name, _ in members[::2]]
    dataset = TokenDataset(job.output_url)
    rows = list(dataset.rows())
    assert [(row.key, row.crop) for row in rows] == [(key, n) for key in keys for n in range(crops.num_crops)]
    assert [row.key for _, row in dataset.quarantined()] == ["bad", "cut"]
    assert (result.error, result.num_images, result.num_quarantined) == ("", 7 * crops.num_crops, 2)
    assert dataset.num_rows == 7 * crops.num_crops
    assert verify_dataset(job.output_url) == []

    # The tokens of each are those of its pixels as an image of its own.
    alone = make_job(checkpoint, tmp_path / "alone")
    pictures = write_shard(tmp_path / "alone.tar", decode_all(members, crops))
    assert ShardTokenizer(alone, device="cpu", num_threads=1)(pictures).error == ""
    for row, single in zip(rows, TokenDataset(alone.output_url).rows(), strict=True):
        assert single.key == f"{row.key}-{row.crop:02d}"
        assert np.array_equal(row.global_codes, single.global_codes)
        assert np.array_equal(row.patch_codes, single.patch_codes)
        assert np.array_equal(row.patch_positions, single.patch_positions)
    labels = {row.key: row.label for row in rows}
    assert [row.label for row in rows] == [labels[row.key] for row in rows] and None not in labels.values()


def test_crops_do_not_depend_on_shard_order_threads_or_batches(checkpoint: str, tmp_path: Path) -> None:
    crops = CropConfig("random", count=3)
    members = crop_members(9) + hostile_members()[0]
    shard = write_shard(tmp_path / "a.tar", members)
    seen = []
    for name, threads, decoders in (("one", 1, 0), ("four", 4, 0), ("as on a GPU", 2, 3)):
        job = make_crop_job(checkpoint, tmp_path / name, crops)
        tokenize = ShardTokenizer(job, device="cpu", num_threads=threads)
        if decoders:
            tokenize._pipeline = SamplePipeline(
                tokenize._decode, tokenize._encode, batch_size=4, num_lanes=threads, num_decoders=decoders,
                images_per_sample=3,
            )  # fmt: skip
        assert tokenize(shard).error == ""
        seen.append({path: file for path, file in digest(tmp_path / name).items() if "other" not in path})
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) == 2

    # Another shard, the other way round, with another batch: the same rows of every image.
    job = make_crop_job(checkpoint, tmp_path / "back", crops, batch_size=5)
    pairs = [crop_members(9)[i : i + 2] for i in range(0, 18, 2)]
    back = write_shard(tmp_path / "b.tar", [member for pair in pairs[::-1] for member in pair])
    assert ShardTokenizer(job, device="cpu", num_threads=2)(back).error == ""
    rows = {(row.key, row.crop): row for row in TokenDataset(str(tmp_path / "one")).rows()}
    for row in TokenDataset(job.output_url).rows():
        same = rows[row.key, row.crop]
        assert np.array_equal(row.patch_positions, same.patch_positions)
        assert np.array_equal(row.patch_codes, same.patch_codes)


def test_a_sample_of_a_shard_counts_rows(checkpoint: str, tmp_path: Path) -> None:
    members = crop_members(6)
    shard = write_shard(tmp_path / "a.tar", members)
    job = make_crop_job(checkpoint, tmp_path / "out", CropConfig("ten_crop"))
    tokenize = ShardTokenizer(job, device="cpu", num_threads=1)
    found = tokenize.sample(shard, max_images=25, max_s=60)
    assert found.num_images == 30  # three images, so that no image counts in part
    assert found.bytes_in == sum(len(data) for name, data in members[:6] if not name.endswith(".cls"))
    assert tokenize.sample(shard, max_images=1000, max_s=60).bytes_in == Path(shard).stat().st_size


def test_told_to_stop_a_shard_in_work_ends_and_the_next_is_not_begun(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [write_shard(tmp_path / f"{i}.tar", crop_members(9, first=9 * i)) for i in range(2)]
    tokenize = ShardTokenizer(make_job(checkpoint, tmp_path / "out"), device="cpu", num_threads=1)
    decoding, go_on = threading.Event(), threading.Event()

    def slow(data: bytes, config: PreprocessConfig, crops: CropConfig, *, key: str) -> DecodedCrops:
        decoding.set()
        assert go_on.wait(30)
        return decode_crops(data, config, crops, key=key)

    monkeypatch.setattr(shard_tokenizer, "decode_crops", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(tokenize, shards[0])
        assert decoding.wait(30)
        second = pool.submit(tokenize, shards[1])
        tokenize.stop_taking()
        stopped = second.result(timeout=5)
        assert (stopped.was_begun, stopped.error) == (False, "")
        assert not first.done()
        go_on.set()
        assert first.result(timeout=30).num_images == 9
    assert [name.partition("-")[0] for name in digest(tmp_path / "out")] == ["data/0"]
    assert not tokenize(shards[1]).was_begun


def test_errors_that_may_pass_are_tried_again(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = write_shard(tmp_path / "a.tar", crop_members(5))
    monkeypatch.setattr(shard_tokenizer, "_FIRST_PAUSE_S", 0.01)
    calls = []

    def flaky(*arguments: Any, **options: Any) -> bool:
        calls.append(1)
        if len(calls) < 3:
            raise OSError("the store is away")
        return commit_shard(*arguments, **options)

    monkeypatch.setattr(shard_tokenizer, "commit_shard", flaky)
    tokenize = ShardTokenizer(make_job(checkpoint, tmp_path / "out"), device="cpu", num_threads=1)
    assert tokenize(shard).error == "" and len(calls) == 3
    # And not for ever, nor what cannot pass.
    calls.clear()
    monkeypatch.setattr(shard_tokenizer, "commit_shard", lambda *a, **k: flaky() if len(calls) < 1 else 1 / 0)
    (tmp_path / "b.tar").write_bytes(Path(shard).read_bytes())
    assert tokenize(str(tmp_path / "b.tar")).error.startswith("ZeroDivisionError")
    assert "c.tar" in tokenize(str(tmp_path / "c.tar")).error


@pytest.mark.parametrize("stage", ["_encode", "_decode"])
def test_a_library_that_exits_fails_the_shard_alone(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setattr(shard_tokenizer, "_FIRST_PAUSE_S", 0.01)
    tokenize = ShardTokenizer(make_job(checkpoint, tmp_path / "out"), device="cpu", num_threads=1)
    original = getattr(tokenize, stage)
    monkeypatch.setattr(tokenize, stage, lambda item: sys.exit(0))
    shard = write_shard(tmp_path / "a.tar", crop_members(5))
    assert tokenize(shard).error == "SystemExit: 0"
    monkeypatch.setattr(tokenize, stage, original)
    assert tokenize(shard).error == ""


def test_an_unreadable_shard_is_a_result_and_leaves_nothing(checkpoint: str, tmp_path: Path) -> None:
    whole = Path(write_shard(tmp_path / "a.tar", crop_members(6)))
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    tokenize = ShardTokenizer(make_job(checkpoint, tmp_path / "out"), device="cpu", num_threads=1)
    assert "a.tar" in tokenize(str(whole)).error
    assert "b.tar" in tokenize(str(tmp_path / "b.tar")).error
    assert digest(tmp_path / "out") == {}


def test_what_is_no_shard_or_too_large_is_not_tried_again(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shard_tokenizer, "_FIRST_PAUSE_S", 0.01)
    job = replace(make_job(checkpoint, tmp_path / "out"), limits=ShardLimits(max_members=2))
    tokenize = ShardTokenizer(job, device="cpu", num_threads=1)
    tar = Path(write_shard(tmp_path / "many.tar", crop_members(5)))
    contents = {
        "zip.tar": (b"PK\x03\x04" + bytes(600), "a zip archive"),
        "page.tar": (b"<html>404</html>" * 100, "not a tar archive: it begins with b'<html>"),
        "page.parquet": (b"<html>404</html>" * 100, "not a Parquet file: it begins with b'<html>"),
        "empty.tar": (b"", "the file has 0 bytes"),
        "many.tar": (tar.read_bytes(), "more than max_members=2 members"),
    }
    for name, (content, told) in contents.items():
        (tmp_path / name).write_bytes(content)
        assert tokenize(str(tmp_path / name)).error.startswith(f"{tmp_path / name}: {told}")
    assert "attempt" not in caplog.text
    (tmp_path / "cut.tar").write_bytes(tar.read_bytes()[:700])  # may be whole the next time
    assert "cut off" in tokenize(str(tmp_path / "cut.tar")).error
    assert "attempt 1 of 2" in caplog.text


def test_an_empty_shard_is_a_shard_of_no_rows(checkpoint: str, tmp_path: Path) -> None:
    job = make_job(checkpoint, tmp_path / "out")
    result = ShardTokenizer(job, device="cpu", num_threads=1)(write_shard(tmp_path / "a.tar", []))
    assert (result.error, result.num_images) == ("", 0)
    assert [notice.text for notice in result.notices] == ["there is nothing in the shard"]
    assert list(TokenDataset(job.output_url).rows()) == []


def test_a_shard_without_an_image_is_not_done(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = []
    real = shard_tokenizer.open_samples
    monkeypatch.setattr(
        shard_tokenizer, "open_samples", lambda url, **options: readings.append(url) or real(url, **options)
    )
    bad = [("a.jpg", b"<html>"), ("b.b.png", b"x"), ("c.jpg", b"<html>"), ("d.txt", b"x"), ("e.npy", b"")]
    shard = write_shard(tmp_path / "a.tar", bad)
    tokenize = ShardTokenizer(make_job(checkpoint, tmp_path / "out"), device="cpu", num_threads=1)
    error = tokenize(shard).error
    assert error.startswith(
        f"{shard}: none of 5 samples gives a row (3 NoImage, first 'b': files .b.png, none"
    )
    assert "; 2 NotAnImage, first 'a': begins with b'<html>'; expected" in error
    assert error.endswith("); mend the shard, or leave it out of input.shards") and "\n" not in error
    assert readings == [shard]  # it is the same when read again
    assert digest(tmp_path / "out") == {}
    # One image among them, and all the others are quarantine rows.
    result = tokenize(write_shard(tmp_path / "a.tar", [*bad, *crop_members(1)]))
    assert (result.error, result.num_images, result.num_quarantined) == ("", 1, 5)
    counts = {refusal.text: (refusal.num_samples, refusal.example[:8]) for refusal in result.refusals}
    assert counts == {"NotAnImage": (2, "'a': beg"), "NoImage": (3, "'b': fil")}


def test_a_shard_of_class_names_is_refused_or_has_no_labels(checkpoint: str, tmp_path: Path) -> None:
    image = crop_members(1)[0][1]
    shard = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [image, image], "label": ["cat", "dog"]}), shard)
    job = make_job(checkpoint, tmp_path / "out")
    assert "column label: string holds 'cat'" in ShardTokenizer(job, device="cpu", num_threads=1)(shard).error
    without = replace(job, limits=ShardLimits(ignore=["label"]))
    assert ShardTokenizer(without, device="cpu", num_threads=1)(shard).num_images == 2
    assert [row.label for row in TokenDataset(job.output_url).rows()] == [None, None]


def test_weights_that_give_no_numbers_fail_the_shard(checkpoint: str, tmp_path: Path) -> None:
    tokenize = ShardTokenizer(make_job(checkpoint, tmp_path / "out"), device="cpu", num_threads=1)
    tokenize.tokenizer.model.prior.patch_head.rows.fill_(float("nan"))
    result = tokenize(write_shard(tmp_path / "a.tar", crop_members(2)))
    assert "not finite" in result.error
    assert digest(tmp_path / "out") == {}
