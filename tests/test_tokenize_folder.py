"""From a folder of images to tokens: the same ones as from an archive of it, also when the folder grows."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe import inspect_tokens, tokenize_corpus
from tatok_pipe.commands.tokenize_corpus import setup as tokenize_setup
from tatok_pipe.commands.tokenize_corpus.options import TokenizeCorpusConfig
from tatok_pipe.config.load import load_config
from tatok_pipe.encoding.image_input import ListPlace, class_names_of, find_image_shards
from tatok_pipe.encoding.shard_tokenizer import ShardTokenizer
from tatok_pipe.errors import UserError
from tatok_pipe.images.limits import DEFAULT_LIMITS, ShardLimits
from tatok_pipe.images.source import open_samples, shard_info
from tatok_pipe.records import ImageSample, TokenRecord
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokens.dataset import TokenDataset
from tests.entries import assert_told
from tests.pictures import crop_members, small_tokenizer, write_shard
from tests.test_shard_tokenizer import make_job

CLASSES = ("beagle", "tabby", "zebra")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def images(count: int) -> list[tuple[str, bytes]]:
    """Real crops, in class folders in turn."""
    crops = [(name, data) for name, data in crop_members(count) if not name.endswith(".cls")]
    return sorted((f"{CLASSES[number % 3]}/{name}", data) for number, (name, data) in enumerate(crops))


def write_folder(folder: Path, members: list[tuple[str, bytes]]) -> Path:
    for name, data in members:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_tar_of_tars(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar a class, as ImageNet comes, by Python's own module."""
    with tarfile.open(path, "w") as outer:
        for name in dict.fromkeys(name.partition("/")[0] for name, _ in members):
            sink = io.BytesIO()
            with tarfile.open(fileobj=sink, mode="w") as inner:
                for member, data in members:
                    if member.startswith(f"{name}/"):
                        header = tarfile.TarInfo(member.partition("/")[2])
                        header.size = len(data)
                        inner.addfile(header, io.BytesIO(data))
            header = tarfile.TarInfo(f"{name}.tar")
            header.size = len(sink.getvalue())
            outer.addfile(header, io.BytesIO(sink.getvalue()))
    return path


def write_manifest(path: Path, members: list[tuple[str, bytes]]) -> list[dict[str, str]]:
    """The images in no order, each with its class and a caption."""
    rows = [
        {"url": name, "label": name.partition("/")[0], "caption": f"of {name}"} for name, _ in members[::-1]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def tokens(output: Path) -> dict[str, tuple[bytes, bytes, bytes]]:
    def content(row: TokenRecord) -> tuple[bytes, bytes, bytes]:
        return row.global_codes.tobytes(), row.patch_codes.tobytes(), row.patch_positions.tobytes()

    return {row.key: content(row) for row in TokenDataset(str(output)).rows()}


def digests(output: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.glob("data/*"))
    }


@pytest.mark.parametrize("num_images", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_the_same_images_in_every_form_give_the_same_tokens(
    checkpoint: str, tmp_path: Path, num_images: int
) -> None:
    members = images(num_images)
    assert len(members) == num_images
    tar = Path(write_shard(tmp_path / "photos.tar", members))
    (tmp_path / "photos.tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    keys = [name.rpartition(".")[0] for name, _ in members]
    table = pa.table({"__key__": keys, "image": [data for _, data in members]})
    pq.write_table(table, tmp_path / "photos.parquet")
    write_folder(tmp_path / "photos", members)
    rows = write_manifest(write_folder(tmp_path / "listed", members) / "list.jsonl", members)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "listed/list.parquet")
    write_tar_of_tars(tmp_path / "classes.tar", members[::-1])
    found, classes = {}, {}
    for name in (
        "photos.tar", "photos.tar.gz", "photos.zip", "photos.parquet", "photos", "photos/", "listed/list.jsonl",
        "listed/list.parquet", "classes.tar",
    ):  # fmt: skip
        output = tmp_path / f"of-{len(found)}"
        job = make_job(checkpoint, output)
        tokenize = ShardTokenizer(job, device="cpu", num_threads=1)
        place = ListPlace(f"{output}/_input.parquet", images_per_part=num_images * 5 // 12)
        for shard in find_image_shards(f"{tmp_path}/{name}", option="input.shards", place=place):
            result = tokenize(shard.url)
            assert result.error == "" and result.num_images
            classes[name] = class_names_of(shard, DEFAULT_LIMITS)
        found[name] = tokens(output)
        tokenize.close()
    assert sorted(found["photos.tar"]) == keys
    assert all(each == found["photos.tar"] for each in found.values())
    assert len(digests(tmp_path / "of-4")) == 3  # parts
    assert digests(tmp_path / "of-4") == digests(tmp_path / "of-5")
    with_classes = [name for name in found if classes[name]]
    assert with_classes == ["photos", "photos/", "listed/list.jsonl", "listed/list.parquet", "classes.tar"]
    named = [
        {row.key: CLASSES[row.label or 0] for row in TokenDataset(f"{tmp_path}/of-{number}").rows()}
        for number, name in enumerate(found)
        if classes[name] == CLASSES
    ]
    assert len(named) == 5 and all(each == {key: key.partition("/")[0] for key in keys} for each in named)


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "tatok_pipe.tokenize_corpus", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.ray
def test_a_folder_that_grows_and_changes(checkpoint: str, tmp_path: Path) -> None:
    members = images(9)
    photos = write_folder(tmp_path / "photos", [each for each in members if not each[0].startswith("tabby")])
    old = next(iter(photos.glob("zebra/*")))
    os.utime(old, (1e9, 1e9))
    arguments = [
        f"input.shards={photos}", f"output.url={tmp_path}/out", "input.images_per_part=4",
        f"tokenizer.checkpoint={checkpoint}",
    ]  # fmt: skip
    run(*arguments)
    dataset = TokenDataset(f"{tmp_path}/out")
    assert dataset.spec.class_names == ("beagle", "zebra")
    assert {row.key.partition("/")[0]: row.label for row in dataset.rows()} == {"beagle": 0, "zebra": 1}
    before = digests(tmp_path / "out")
    assert len(before) == 2

    # Another time and the same content is no change. New images make new parts, a new class gets the next number.
    old.touch()
    write_folder(photos, members)
    told = run(*arguments)
    assert "3 image shards, 2 done before, 1 to do" in told
    dataset = TokenDataset(f"{tmp_path}/out")
    assert dataset.spec.class_names == ("beagle", "zebra", "tabby")
    assert {row.key.partition("/")[0]: row.label for row in dataset.rows()} == {
        "beagle": 0,
        "zebra": 1,
        "tabby": 2,
    }
    assert before.items() <= digests(tmp_path / "out").items()

    # A fresh dataset has the same rows.
    place = ListPlace(f"{tmp_path}/fresh/_input.parquet")
    tokenize = ShardTokenizer(make_job(checkpoint, tmp_path / "fresh"), device="cpu", num_threads=1)
    for shard in find_image_shards(str(photos), option="input.shards", place=place):
        assert tokenize(shard.url).error == ""
    assert tokens(tmp_path / "fresh") == tokens(tmp_path / "out")

    # A part that is damaged is found and made again; one whose image changed is told, and made again when asked for.
    whole = digests(tmp_path / "out")
    damaged = sorted(tmp_path.glob("out/data/*"))[2]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert inspect_tokens.main([f"input.url={tmp_path}/out", "--verify"]) == 1
    assert inspect_tokens.main([f"input.url={tmp_path}/out", "--repair"]) == 0
    old.write_bytes(next(iter(photos.glob("tabby/*"))).read_bytes())
    assert_told(
        tokenize_corpus.main,
        arguments,
        rf"1 of 2 image shards changed since .*{photos}#00000\d \(was \d+ bytes",
    )
    run(*arguments, "input.on_source_change=retokenize")
    now = digests(tmp_path / "out")
    assert sorted(now) == sorted(whole) and now[damaged.name] == whole[damaged.name]
    assert sum(now[name] != whole[name] for name in now) == 1
    assert inspect_tokens.main([f"input.url={tmp_path}/out", "--verify"]) == 0


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_tar_of_tars_that_grows_and_changes(checkpoint: str, tmp_path: Path) -> None:
    members = images(9)
    outer, first = tmp_path / "train.tar", [each for each in members if not each[0].startswith("tabby")]
    write_tar_of_tars(outer, first)
    arguments = [
        f"input.shards={outer}",
        f"output.url={tmp_path}/out",
        f"tokenizer.checkpoint={checkpoint}",
    ]
    run(*arguments)
    before = digests(tmp_path / "out")
    assert len(before) == 2

    # A new class is a new part and gets the next number; where the others begin now is no change of them.
    write_tar_of_tars(outer, members)
    assert "3 image shards, 2 done before, 1 to do" in run(*arguments)
    dataset = TokenDataset(f"{tmp_path}/out")
    assert dataset.spec.class_names == ("beagle", "zebra", "tabby")
    labels = {row.key.partition("/")[0]: row.label for row in dataset.rows()}
    assert labels == {"beagle": 0, "zebra": 1, "tabby": 2}
    assert before.items() <= digests(tmp_path / "out").items()

    # A part that is damaged is found and made again; one whose images changed is told, and made again when asked for.
    whole = digests(tmp_path / "out")
    damaged = sorted(tmp_path.glob("out/data/*"))[2]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert inspect_tokens.main([f"input.url={tmp_path}/out", "--verify"]) == 1
    assert inspect_tokens.main([f"input.url={tmp_path}/out", "--repair"]) == 0
    other = next(data for name, data in members if name.startswith("tabby"))
    changed = next(number for number, (name, _) in enumerate(members) if name.startswith("zebra"))
    members[changed] = (members[changed][0], other)
    write_tar_of_tars(outer, members)
    assert_told(
        tokenize_corpus.main, arguments, rf"1 of 2 image shards changed since .*{outer}#00000\d \(was "
    )
    run(*arguments, "input.on_source_change=retokenize")
    now = digests(tmp_path / "out")
    assert sorted(now) == sorted(whole) and now[damaged.name] == whole[damaged.name]
    assert sum(now[name] != whole[name] for name in now) == 1
    assert inspect_tokens.main([f"input.url={tmp_path}/out", "--verify"]) == 0


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_manifest_that_grows_and_changes(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = images(9)
    photos = write_folder(tmp_path / "photos", members)
    manifest, first = photos / "list.jsonl", [each for each in members if not each[0].startswith("tabby")]
    write_manifest(manifest, first)
    arguments = [
        f"input.shards={manifest}", f"output.url={tmp_path}/out", "input.images_per_part=4",
        f"tokenizer.checkpoint={checkpoint}",
    ]  # fmt: skip
    run(*arguments)
    before = digests(tmp_path / "out")
    assert len(before) == 2
    rows = {row.key: row for row in TokenDataset(f"{tmp_path}/out").rows()}
    assert {row.caption for row in rows.values()} == {f"of {name}" for name, _ in first}
    assert {key.partition("/")[0]: row.label for key, row in rows.items()} == {"beagle": 0, "zebra": 1}

    # New rows make new parts, a new class gets the next number; an image that is not there is one quarantine row.
    write_manifest(manifest, [*members, ("zebra/gone.jpg", b"")])
    assert "3 image shards, 2 done before, 1 to do" in run(*arguments)
    dataset = TokenDataset(f"{tmp_path}/out")
    assert dataset.spec.class_names == ("beagle", "zebra", "tabby")
    assert {row.key.partition("/")[0]: row.label for row in dataset.rows()} == {
        "beagle": 0,
        "zebra": 1,
        "tabby": 2,
    }
    assert [(row.key, row.error) for _, row in dataset.quarantined()] == [("zebra/gone", "NotFound")]
    assert before.items() <= digests(tmp_path / "out").items()

    # A part that is damaged is found and made again; what the manifest says anew of an image changes its part alone.
    whole = digests(tmp_path / "out")
    damaged = sorted(tmp_path.glob("out/data/*"))[2]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert inspect_tokens.main([f"input.url={tmp_path}/out", "--verify"]) == 1
    assert inspect_tokens.main([f"input.url={tmp_path}/out", "--repair"]) == 0
    lines = manifest.read_text().splitlines(keepends=True)
    last = next(number for number, line in enumerate(lines) if '"beagle/' in line)
    lines[last] = lines[last].replace('"of ', '"OF ')
    manifest.write_text("".join(lines))
    told = rf"1 of 2 image shards changed since .*{manifest}#00000\d \(was "
    assert_told(tokenize_corpus.main, arguments, told)
    run(*arguments, "input.on_source_change=retokenize")
    now = digests(tmp_path / "out")
    assert sorted(now) == sorted(whole) and now[damaged.name] == whole[damaged.name]
    assert sum(now[name] != whole[name] for name in now) == 1
    assert inspect_tokens.main([f"input.url={tmp_path}/out", "--verify"]) == 0
    capsys.readouterr()
    assert inspect_tokens.main([f"input.url={tmp_path}/out", f"tokenizer.checkpoint={checkpoint}"]) == 0
    assert "(n = 9)" in capsys.readouterr().out and "data:image" in (tmp_path / "out/report.html").read_text()


def test_a_manifest_of_images_elsewhere_is_asked_about(checkpoint: str, tmp_path: Path) -> None:
    manifest = tmp_path / "list.jsonl"
    manifest.write_text('{"url": "http://169.254.169.254/a.jpg"}')
    argv = [f"input.shards={manifest}", f"output.url={tmp_path}/out", f"tokenizer.checkpoint={checkpoint}"]
    told = (
        rf"input.shards={manifest}: 1 of 1 images are in another store .*; input.other_stores=true opens them"
    )
    assert_told(tokenize_corpus.main, argv, told)
    assert not (tmp_path / "out").exists()


def test_names_of_classes_can_be_given(checkpoint: str, tmp_path: Path) -> None:
    """So that a validation set has the numbers of what it is held out from."""
    photos = write_folder(tmp_path / "photos", [each for each in images(9) if each[0].startswith("tabby")])
    (tmp_path / "names.txt").write_text("zebra\nbeagle\ntabby\n")
    config = load_config(
        TokenizeCorpusConfig,
        [f"output.url={tmp_path}/out", f"input.class_names=@{tmp_path}/names.txt"],
        prog="",
        description="",
    )
    place = ListPlace(f"{tmp_path}/_input.parquet")
    (shard,) = find_image_shards(str(photos), option="input.shards", place=place)
    names = tokenize_setup.make_spec(config, load_tokenizer(checkpoint), [shard]).class_names
    assert names == ("zebra", "beagle", "tabby")
    with open_samples(shard.url, info=shard_info(shard.url), class_names=names) as samples:
        assert {sample.label for sample in samples if isinstance(sample, ImageSample)} == {2}
    (tmp_path / "names.txt").write_text("zebra\n")
    told = "input.class_names=.*names.txt: has 1 names, and the classes of input.shards are told by theirs: not 'tabby'"
    with pytest.raises(UserError, match=told):
        tokenize_setup.make_spec(config, load_tokenizer(checkpoint), [shard])


def test_names_that_the_schema_of_a_manifest_tells(checkpoint: str, tmp_path: Path) -> None:
    """They are the dataset's, and one that was begun without goes on with numbers."""
    (name, data), *_ = images(3)
    write_folder(tmp_path, [(name, data)])
    features = {
        "url": {"dtype": "string", "_type": "Value"},
        "label": {"names": ["ape", "cat"], "_type": "ClassLabel"},
    }
    table = pa.table({"url": [name], "label": [1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "list.parquet")
    place = ListPlace(f"{tmp_path}/_input.parquet")
    (shard,) = find_image_shards(f"{tmp_path}/list.parquet", option="input.shards", place=place)
    tokenizer = load_tokenizer(checkpoint)

    def names(output: str, *argv: str) -> tuple[str, ...]:
        arguments = [f"output.url={tmp_path}/{output}", "encode.precision=fp32", "encode.batch_size=4", *argv]
        config = load_config(TokenizeCorpusConfig, arguments, prog="", description="")
        return tokenize_setup.make_spec(config, tokenizer, [shard]).class_names

    assert names("out") == ("ape", "cat")
    assert names("out", "input.class_names=none") == ()
    job = make_job(checkpoint, tmp_path / "begun")
    assert job.spec.class_names == names("begun") == ()
    assert ShardTokenizer(job, device="cpu", num_threads=1)(shard.url).error == ""
    assert [row.label for row in TokenDataset(job.output_url).rows()] == [1]


def test_classes_without_names_are_never_numbered_anew(checkpoint: str, tmp_path: Path) -> None:
    """Numbers that are nowhere written down would be others when a class comes."""
    photos = write_folder(tmp_path / "photos", images(6))
    place = ListPlace(f"{tmp_path}/_input.parquet")
    (shard,) = find_image_shards(str(photos), option="input.shards", place=place)
    tokenizer = load_tokenizer(checkpoint)

    def names(*argv: str) -> tuple[str, ...]:
        arguments = [f"output.url={tmp_path}/out", "encode.precision=fp32", "encode.batch_size=4", *argv]
        config = load_config(TokenizeCorpusConfig, arguments, prog="", description="")
        return tokenize_setup.make_spec(config, tokenizer, [shard]).class_names

    assert names() == CLASSES
    with pytest.raises(
        UserError, match="input.class_names=none: classes have no names there, .* 'beagle' nor 2 more"
    ):
        names("input.class_names=none")
    assert names("input.class_names=none", "input.limits.ignore=[label]") == ()
    make_job(checkpoint, tmp_path / "out")  # begun from what tells no names
    with pytest.raises(
        UserError, match="output.url: classes have no names there, and the classes of input.shards are told"
    ):
        names()
    assert names("input.limits.ignore=[label]") == ()
    with open_samples(shard.url, info=shard_info(shard.url), limits=ShardLimits(ignore=["label"])) as samples:
        assert {sample.label for sample in samples if isinstance(sample, ImageSample)} == {None}


def test_a_dry_run_on_a_folder_writes_nothing(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_folder(tmp_path / "photos", images(3))
    command = ["dry_run=true", f"input.shards={photos}", f"output.url={tmp_path}/out", "encode.batch_size=4"]
    told = run(*command, "encode.precision=fp32", f"tokenizer.checkpoint={checkpoint}")
    assert "1 image shard: 0 done and skipped, 1 to do" in told and "3 would be rows" in told
    assert not (tmp_path / "out").exists()


def test_an_output_inside_the_folder_is_refused(checkpoint: str, tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", images(3))
    for output in (photos, photos / "tokens"):
        argv = [f"input.shards={photos}", f"output.url={output}", f"tokenizer.checkpoint={checkpoint}"]
        assert_told(tokenize_corpus.main, argv, "inside input.shards=.*; give an output.url outside")
    assert sorted(path.name for path in photos.iterdir()) == sorted(CLASSES)


def test_a_folder_without_images_says_what_is_there(checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a caption")
    argv = [
        f"input.shards={tmp_path}/notes",
        f"output.url={tmp_path}/out",
        f"tokenizer.checkpoint={checkpoint}",
    ]
    assert_told(
        tokenize_corpus.main, argv, r"no .tar, .zip or .parquet file there; .*: 1 × a list or text, first: "
    )
    assert not (tmp_path / "out").exists()


def test_the_summary_names_the_parts(checkpoint: str, tmp_path: Path) -> None:
    photos = write_folder(
        tmp_path / "photos", [*images(3), ("zebra/broken.jpg", b"\xff\xd8\xff" + bytes(100))]
    )
    job = make_job(checkpoint, tmp_path / "out")
    place = ListPlace(f"{tmp_path}/out/_input.parquet")
    (shard,) = find_image_shards(str(photos), option="input.shards", place=place)
    result = ShardTokenizer(job, device="cpu", num_threads=1)(shard.url)
    assert (result.num_images, result.num_quarantined) == (3, 1)
    ((name, bad),) = TokenDataset(job.output_url).quarantined()
    assert name.startswith("photos-000000-") and bad.key == "zebra/broken"
    footer = TokenDataset(job.output_url).shard_metadata(name)
    assert json.dumps(footer.source.url) == json.dumps(f"{photos}#000000")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_commands_of_the_readme(tmp_path: Path) -> None:
    """From photographs to pictures of a class by its name, as the README has it."""
    root = Path(__file__).parents[1]
    text = (root / "README.md").read_text()
    steps = text.partition("### 2. ")[2].partition("### 4. ")[0].replace("\\\n", " ")
    commands = [line for line in steps.splitlines() if line.startswith("python -m")]
    assert len(commands) == 4
    write_folder(tmp_path / "photos", images(60))
    (tmp_path / "configs").symlink_to(root / "configs")
    environment = {**os.environ, "PYTHONPATH": str(root)}
    for command in commands:
        argv = [sys.executable, *command.partition("#")[0].split()[1:]]
        done = subprocess.run(
            argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "photo_tokens/report.html").exists()
    names = json.loads((tmp_path / "photo_generator/generator/generator.json").read_text())["tokens"][
        "class_names"
    ]
    assert tuple(names) == CLASSES
    assert list((tmp_path / "photo_pictures").glob("**/*.png"))
