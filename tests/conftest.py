"""Fixtures for every test: a real S3 server, and made-up token rows that are valid."""

from __future__ import annotations

import json
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tatok_pipe.commands.demo import server as demo_server
from tatok_pipe.records import TokenRecord
from tatok_pipe.tokens.spec import FilterSpec, TokenSpec


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers, all tests of a file go to one, and the files that start Ray to the same: two clusters on a
    machine get in each other's way."""
    with_ray = {item.path for item in items if item.get_closest_marker("ray")}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if item.path in with_ray else str(item.path)))


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Models here are tiny: threads would only wait for each other, for minutes on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """A command that ends ignores signals; that of a test in this process is not to leave that to the tests after it,
    and to the processes that these start."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        if handler is not None:  # what was not set by Python cannot be
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def stranger_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with what a user may have in it: results of every job by their default names, and other things,
    none of them whole."""
    folder = tmp_path_factory.mktemp("working-folder")
    for name in (
        "tatok_out/_dataset.json",
        "tatok_out/data/000000-0123abcd.parquet",
        "tatok_demo/corpus.json",
        "tatok_demo/photo.tar",
        "tatok_generator/generator.json",
        "tatok_samples/_generation.json",
        "tatok_evaluation/reconstruction/results.json",
        "images.tar",
        "images.parquet",
        "photo.jpg",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not for a test")
    return folder


@pytest.fixture(autouse=True)
def other_working_folder(
    request: pytest.FixtureRequest, stranger_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Every test runs in a folder with odd things in it, and leaves nothing there: none may depend on where it is
    run. But for those that start Ray, whose workers import tests from the folder that they are run in."""
    if request.node.get_closest_marker("ray"):
        yield
        return
    before = sorted(stranger_folder.rglob("*"))
    monkeypatch.chdir(stranger_folder)
    yield
    assert sorted(stranger_folder.rglob("*")) == before, "a test left something in the working folder"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[demo_server.S3Server]:
    """A running S3 server with the bucket "tatok". Mark tests that use it with `s3`."""
    with demo_server.s3_server(tmp_path_factory.mktemp("s3-server"), bucket="tatok") as server:
        yield server


@pytest.fixture
def s3_url(s3_server: demo_server.S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty prefix on the S3 server, of this test alone, with the environment set to reach it."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3_server.bucket}/{uuid.uuid4().hex}"


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`full_disk(num_bytes)`: an empty folder that holds no more than that."""
    folder = tmp_path / "full"
    folder.mkdir()

    def mount(num_bytes: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk takes root")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


@pytest.fixture(scope="session")
def token_spec() -> TokenSpec:
    """A small spec: 3 globals, 16 patches; the patch codes need 32 bits."""
    return TokenSpec(
        num_globals=3,
        num_patches=16,
        global_vocab=512,
        patch_vocab=70_000,
        image_size=32,
        patch_size=8,
        tokenizer_fingerprint="sha256:" + "ab" * 32,
        dtf=FilterSpec("threshold", "entropy", 0.25, 1),
        encoding={"precision": "float32"},
    )


@pytest.fixture(scope="session")
def make_token_records() -> Callable[..., list[TokenRecord]]:
    """`make_token_records(spec, count, seed=0)`: random valid rows, optional columns filled now and then."""
    return _make_token_records


def _make_token_records(spec: TokenSpec, count: int, seed: int = 0) -> list[TokenRecord]:
    random = np.random.default_rng(seed)
    return [_make_token_record(spec, index, random) for index in range(count)]


def _make_token_record(spec: TokenSpec, index: int, random: np.random.Generator) -> TokenRecord:
    num_kept = int(random.integers(0, spec.num_patches + 1))
    positions = np.sort(random.choice(spec.num_patches, num_kept, replace=False)).astype(np.uint16)
    entropy = random.gamma(2.0, 1.0, spec.num_patches)
    is_odd = bool(random.integers(0, 2))
    return TokenRecord(
        key=f"image-{index:06d}",
        label=int(random.integers(0, 1000)) if is_odd else None,
        caption=f"a caption, № {index}" if random.integers(0, 2) else None,
        meta=json.dumps({"index": index}) if is_odd else None,
        width=int(random.integers(1, 5000)),
        height=int(random.integers(1, 5000)),
        crop=int(random.integers(0, 2)),
        global_codes=random.integers(0, spec.global_vocab, spec.num_globals).astype(np.uint16),
        patch_codes=random.integers(0, spec.patch_vocab, num_kept).astype(np.uint32),
        patch_positions=positions,
        entropy_total=float(entropy.sum()),
        entropy_dropped=float(np.delete(entropy, positions).sum()),
        mutual_information=float(random.normal(5.0, 2.0)) if is_odd else None,
        patch_entropy=entropy.astype(np.float32) if random.integers(0, 2) else None,
    )
