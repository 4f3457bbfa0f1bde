from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from tatok_pipe.records import Quarantined, TokenRecord
from tatok_pipe.report.figures import SourceSizes
from tatok_pipe.report.gallery import Exhibit
from tatok_pipe.report.inventory import Inventory, Shard
from tatok_pipe.report.page import Report, render_page
from tatok_pipe.tokens.format import ShardSource, empty_statistics
from tatok_pipe.tokens.spec import FilterSpec, TokenSpec

MakeRecords = Callable[..., list[TokenRecord]]
EVIL = "<script>alert(1)</script>\"'&"
_VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Collects elements and text, and checks that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def report(token_spec: TokenSpec, make_token_records: MakeRecords) -> Report:
    """Everything there, and everything that is text hostile."""
    spec = replace(token_spec, tokenizer_fingerprint=EVIL, dtf=FilterSpec(EVIL, "gain", 0.0, 1))
    records = [replace(record, key=f"{EVIL}{record.key}") for record in make_token_records(spec, 9)]
    statistics = empty_statistics(spec)
    statistics.update(records)
    bad = Quarantined(EVIL, "decode", EVIL, EVIL, 1)
    statistics.add_quarantined([bad])
    shard = Shard(
        EVIL, ShardSource(EVIL, 10), 9, statistics.num_tokens, 1, {EVIL: 1}, 10, statistics.kept_histogram
    )
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    return Report(
        version="version 2 (0123456789ab)",
        url=f"s3://bucket/{EVIL}",
        spec=spec,
        description={"tokenizer": {"checkpoint": EVIL}, "source": EVIL},
        inventory=Inventory([shard], statistics, num_planned=3, missing=[EVIL], failed={EVIL: EVIL}),
        sizes=SourceSizes(
            np.array([3, 5]),
            np.array([900, 1000]),
            np.array([9, 9]),
            np.array([True, False]),
            num_shards=1,
            problems=(EVIL,),
        ),
        examples={EVIL: bad},
        exhibits={
            "cheapest": [Exhibit(records[0], picture, picture, 12.345, "")],
            "median": [Exhibit(records[1], None, picture, None, EVIL)],
            "dearest": [Exhibit(records[2], None, None, None, "another reason")],
        },
        notices=[EVIL],
    )


def test_nothing_of_the_data_becomes_markup(report: Report) -> None:
    text = render_page(report)
    page = Page(text)
    assert not page.all("script")
    assert "<script" not in text and "alert(1)" in text
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.text.count(EVIL) > 10


def test_page_asks_for_nothing(report: Report) -> None:
    text = render_page(report)
    page = Page(text)
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "data", "action", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "url(" not in text and "@import" not in text
    policies = [each["content"] for each in page.all("meta") if each.get("http-equiv")]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_pictures_and_charts_have_words_for_those_who_do_not_see_them(report: Report) -> None:
    page = Page(render_page(report))
    images = page.all("img")
    assert len(images) == 3 + 2 + 1  # the original, the kept patches, the reconstruction, where there is one
    assert all(image.get("alt") for image in images)
    for svg in page.all("svg"):
        assert svg.get("aria-label") or svg.get("aria-hidden") == "true"
    assert len([svg for svg in page.all("svg") if svg.get("role") == "img"]) == 5


def test_gallery_says_what_is_shown_and_what_is_missing(report: Report) -> None:
    text = Page(render_page(report)).text
    record = report.exhibits["cheapest"][0].record
    assert f"Cheapest images: {record.num_tokens} tokens" in text
    assert f"{len(record.patch_codes)} of 16 kept" in text
    assert f"{record.entropy_total:,.1f} nats, {record.entropy_dropped:,.1f} dropped · PSNR 12.3 dB" in text
    assert f"2 of 3 originals missing, their kept patches are shown on the reconstruction: {EVIL}" in text
    assert "Reconstructions are decoded from" in text


def test_crops_are_named(report: Report) -> None:
    assert not re.search(r"crop \d|crops", Page(render_page(report)).text)
    spec = replace(report.spec, encoding={"crops": {"per_image": 3}})
    text = Page(render_page(replace(report, spec=spec))).text
    assert ", 3 crops of every image" in text and "crops in 1 shard 9" in text
    for exhibits in report.exhibits.values():
        for exhibit in exhibits:
            assert f"{exhibit.record.key}, crop {exhibit.record.crop}" in text


def test_small_images_keep_their_pixels(report: Report) -> None:
    assert all(image.get("class") == "small" for image in Page(render_page(report)).all("img"))


def test_shards_that_are_not_there(report: Report) -> None:
    text = Page(render_page(report)).text
    assert "3 planned, 1 committed, 1 missing, 1 failed" in text
    assert "missing: no run has committed it" in text


def test_many_shards_are_summed_up(report: Report) -> None:
    inventory = report.inventory
    shards = [replace(inventory.shards[0], name=f"shard-{place}", num_images=place) for place in range(51)]
    text = Page(render_page(replace(report, inventory=replace(inventory, shards=shards)))).text
    assert "shard-7" not in text
    assert "Of a shard Least Median Most Images 0 25 50" in text
    fewer = replace(report, inventory=replace(inventory, shards=shards[:50]))
    assert "shard-7 7" in Page(render_page(fewer)).text


def test_dataset_without_images(report: Report, token_spec: TokenSpec) -> None:
    none = np.zeros(0)
    empty = replace(
        report,
        inventory=Inventory([], empty_statistics(token_spec), num_planned=None, missing=[]),
        sizes=SourceSizes(none, none, none, none.astype(bool)),
        exhibits={"cheapest": [], "median": [], "dearest": []},
        examples={},
    )
    text = render_page(empty)
    page = Page(text)
    assert "The dataset has no images yet." in page.text
    assert not page.all("img") and not page.all("svg")
    assert not re.search(r"\bnan\b", page.text)


def test_same_report_same_page(report: Report) -> None:
    assert render_page(report) == render_page(report)
