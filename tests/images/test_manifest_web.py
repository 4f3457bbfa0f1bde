"""Manifests of images on web servers: what is asked for when, and what becomes of those that are not served."""

from __future__ import annotations

from pathlib import Path

from tatok_pipe import storage
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.source import shard_info
from tatok_pipe.records import ImageSample, Quarantined
from tests.images.manifests import contents, plan, read, refusal, write_lines
from tests.storage.web import WebServer


def test_a_web_server(tmp_path: Path) -> None:
    files = {"/photos/a.jpg": b"an image", "/b": b"AN IMAGE", "/big.jpg": bytes(1000)}
    with WebServer(files) as server:
        rows = ["photos/a.jpg", "b?x=1", "gone.jpg", "big.jpg"]
        manifest = write_lines(tmp_path / "m.jsonl", [{"url": f"{server.url}/{row}"} for row in rows])
        told = refusal(manifest, tmp_path)
        assert told == (
            f"4 of 4 images are in another store than the manifest, first row 1: {server.url}/photos/a.jpg; "
            "input.other_stores=true opens them"
        )
        (shard,) = plan(manifest, tmp_path, size=9, other_stores=True)
        assert server.requests == []
        assert len(shard.etag) == 32 and shard_info(shard.url) == storage.SourceInfo(0, shard.etag)
        host = server.url.removeprefix("http://")
        limits = ShardLimits(max_member_bytes=999)
        found = {each.key.removeprefix(host): each for each in read(shard, limits=limits)}
        images = {key: each.image for key, each in found.items() if isinstance(each, ImageSample)}
        assert images == {"/photos/a": b"an image", "/b?x=1": b"AN IMAGE"}
        errors = {key: each.error for key, each in found.items() if isinstance(each, Quarantined)}
        assert errors == {"/gone": "NotFound", "/big": "TooManyBytes"}
        gone = found["/gone"]
        assert (
            isinstance(gone, Quarantined)
            and f"{server.url}/gone.jpg" in gone.message
            and "404" in gone.message
        )

        # What passes is tried again; what does not is true of that image.
        for statuses, expected in (
            ([503, 0], None),
            ([403], "NotServed"),
            ([410], "NotFound"),
            ([451], "NotServed"),
        ):
            server.statuses = list(statuses)
            one = write_lines(tmp_path / "one.jsonl", [{"url": f"{server.url}/b"}])
            (shard,) = plan(one, tmp_path / str(statuses), other_stores=True)
            (sample,) = read(shard)
            assert (sample.error if isinstance(sample, Quarantined) else None) == expected
        server.coding = "gzip"
        (sample,) = read(shard)
        assert isinstance(sample, Quarantined) and "sends the file compressed" in sample.message


def test_a_manifest_on_a_web_server(tmp_path: Path) -> None:
    lines = b'{"url": "a b.jpg"}\n{"url": "/etc/hosts"}\n'
    with WebServer({"/p/m.jsonl": lines, "/p/n.jsonl": lines[:19], "/p/a%20b.jpg": b"an image"}) as server:
        told = refusal(f"{server.url}/p/m.jsonl", tmp_path)
        assert told.startswith(
            "1 of 2 images are in another store than the manifest, first row 2: /etc/hosts; "
        )
        (shard,) = plan(f"{server.url}/p/n.jsonl", tmp_path)
        assert contents([shard]) == {"a b": (None, None)}


def test_a_link_that_is_signed_anew_is_the_same(tmp_path: Path) -> None:
    shards = []
    for signature in ("one", "two"):
        row = {"url": f"https://host/a.jpg?Signature={signature}&x=1"}
        shards += plan(write_lines(tmp_path / "m.jsonl", [row]), tmp_path / "out", other_stores=True)
    assert shards[0].etag == shards[1].etag
    other = write_lines(tmp_path / "m.jsonl", [row | {"caption": "new"}])
    assert plan(other, tmp_path / "out", other_stores=True)[0].etag != shards[0].etag
