"""A tokenizer that is calibrated again: the same weights, other ladders, through the command."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from tatok_pipe import calibrate
from tatok_pipe.errors import UserError
from tatok_pipe.evaluation.suites.information.suite import bound_filters
from tatok_pipe.tokenizer.analysis import CONTROLS
from tatok_pipe.tokenizer.calibration import calibrate_ladders
from tatok_pipe.tokenizer.checkpoint import load_tokenizer, save_tokenizer
from tatok_pipe.tokenizer.dtf import Filter, keep_mask
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.options import DTFConfig
from tatok_pipe.tokenizer.rules import CALIBRATED_RULES
from tatok_pipe.tokenizer.scores.table import SCORES
from tests.entries import assert_told
from tests.pictures import crop_members, write_shard
from tests.tokenizer.conftest import small_config

# What the training of a tokenizer recorded, as far as its card tells it.
TRAINING = {
    "command": "python -m tatok_pipe.train_tokenizer", "config": {"start": "random", "batch_size": 8}, "num_steps": 5,
    "train_s": 1, "device": "cpu", "precision": "fp32", "torch": "2", "seed": 0, "calibration_images": 3,
    "held_out": {
        "num_images": 3, "default_score": "gain", "psnr_none": 20.0,
        "filtered": [{
            "kept_share": 0.5, "psnr": dict.fromkeys(("gain", *CONTROLS), 15.0), "psnr_threshold": 16.0,
            "tokens_threshold_mean": 11.0, "tokens_threshold_std": 1.0,
        }],
        "psnr_all_but_globals_shuffled": 19.0, "psnr_globals_only": 12.0, "psnr_globals_shuffled": 11.0,
        "default_threshold": 0.5, "default_tokens_mean": 9.0, "default_tokens_std": 1.0, "default_tokens_min": 8,
        "default_tokens_max": 10, "flat_image_patches": 1, "entropy_mean_nats": 1.0, "surprisal_mean_nats": 1.0,
        "patch_codes_used_share": 1.0, "patch_codes_perplexity": 9.0, "global_codes_used_share": 1.0,
        "global_codes_perplexity": 9.0,
    },
}  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Made when there was one score and one rule; stored in half precision."""
    torch.manual_seed(0)
    ladders = {"gain": {"threshold": [[0.0, 1.0], [16.0, 0.0]]}}
    model = TaTok(small_config("vq")).eval()
    save_tokenizer(str(tmp_path / "old"), model, ladders=ladders, training=TRAINING, half=True)
    return tmp_path / "old"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shard(tmp_path / "images.tar", crop_members(12))
    write_shard(tmp_path / "others.tar", crop_members(6, first=12))
    return tmp_path


def test_the_same_weights_get_a_ladder_for_every_score_and_rule(checkpoint: Path, shards: Path) -> None:
    arguments = [f"tokenizer.checkpoint={checkpoint}", f"input.shards={shards}/images.tar"]
    assert calibrate.main([*arguments, f"output.url={shards}/new"]) == 0
    before, after = load_tokenizer(str(checkpoint)), load_tokenizer(f"{shards}/new")
    assert after.fingerprint == before.fingerprint
    weights = [(folder / "model.safetensors").read_bytes() for folder in (checkpoint, shards / "new")]
    assert weights[0] == weights[1]
    assert after.ladders.keys() == SCORES.keys()
    assert all(CALIBRATED_RULES.keys() < rules.keys() for rules in after.ladders.values())
    asked = DTFConfig(rule="proportional", score="synthesis", target_tokens=11)
    with pytest.raises(UserError, match=r"dtf.rule=proportional, score=synthesis: .* tatok_pipe\.calibrate"):
        before.filter(asked)
    assert after.filter(asked).value > 0
    assert "is_measured_again" not in before.training and not after.training["is_measured_again"]
    card = (shards / "new" / "README.md").read_text()
    assert "calibrated again, on 12 images" in card and "figures below are of the training" in card
    assert (
        f"| patches kept | gain | {' | '.join(CONTROLS)} | threshold |" in card
    )  # the training had one score
    # The same again gives the same bytes, also in its own folder.
    first = (shards / "new" / "tokenizer.json").read_bytes()
    assert calibrate.main([*arguments, f"output.url={shards}/new"]) == 0
    assert (shards / "new" / "tokenizer.json").read_bytes() == first


def test_a_folder_of_images_serves_and_held_out_ones_are_measured(checkpoint: Path, shards: Path) -> None:
    folder = shards / "photos"
    folder.mkdir()
    for number in range(9):
        picture = Image.effect_noise((40, 36), 30 + 20 * number).convert("RGB")
        picture.save(folder / f"{number}.png")
    arguments = [
        f"tokenizer.checkpoint={checkpoint}", f"input.shards={folder}", f"validation.shards={shards}/others.tar",
        f"output.url={checkpoint}", "input.max_images=7",
    ]  # fmt: skip
    assert calibrate.main(arguments) == 0
    training = load_tokenizer(str(checkpoint)).training
    assert training["calibration_images"] == 7 and training["held_out"]["num_images"] == 6
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "README.md", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    card = (checkpoint / "README.md").read_text()
    assert "figures below are of the training" not in card and f"| {' | '.join(SCORES)} |" in card


def test_what_the_checkpoint_was_not_calibrated_for_at_all(checkpoint: Path, shards: Path) -> None:
    """Not even for the default score, which may be the reason to calibrate it."""
    torch.manual_seed(0)
    save_tokenizer(str(checkpoint), TaTok(small_config("vq")), ladders={}, training=TRAINING)
    before = load_tokenizer(str(checkpoint))
    with pytest.raises(UserError, match="suite=information: .* not calibrated for budget on entropy"):
        bound_filters(before.ladders, num_patches=16)
    arguments = [f"tokenizer.checkpoint={checkpoint}", f"input.shards={shards}/images.tar"]
    assert calibrate.main([*arguments, f"output.url={checkpoint}"]) == 0
    after = load_tokenizer(str(checkpoint))
    assert after.filter(DTFConfig(target_tokens=11)).value > 0
    assert bound_filters(after.ladders, num_patches=16)


def test_ladders_hold_what_a_plain_count_finds() -> None:
    torch.manual_seed(0)
    model = TaTok(small_config("vq")).eval()
    images = torch.rand(6, 3, 32, 32)
    ladder = calibrate_ladders(model, images)["gain"]["proportional"]
    with torch.no_grad():
        cost = model.encode(images).gain
    for kept, value in ladder:
        mask = keep_mask(cost, Filter("proportional", value))
        counts = [
            max(1, min(16, round(value * sum(max(0.0, each) for each in row)))) for row in cost.tolist()
        ]
        assert mask.sum(1).tolist() == counts and kept == pytest.approx(sum(counts) / 6)


def test_what_cannot_be_calibrated(checkpoint: Path, shards: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_tokenizer(str(tmp_path / "other"), TaTok(small_config("vq")), ladders={}, training=TRAINING)
    base = [f"tokenizer.checkpoint={checkpoint}", f"input.shards={shards}/images.tar"]

    def output(name: str) -> str:
        return f"output.url={tmp_path}/{name}"

    assert_told(calibrate.main, [*base, output("other")], "output.url=.*holds another tokenizer, fingerprint")
    assert_told(calibrate.main, base, "output.url: not given")
    assert_told(calibrate.main, [base[0], output("new")], "input.shards: not given")
    assert_told(
        calibrate.main, [*base, output("new"), f"validation.shards={shards}/*.tar"],
        "images.tar: in input.shards and in validation.shards",
    )  # fmt: skip
    for name, content in (("text", b"no image"), ("empty", b"")):
        write_shard(shards / f"{name}.tar", [("a.jpg", content)])
        assert_told(
            calibrate.main, [base[0], f"input.shards={shards}/{name}.tar", output("new")], "no readable image"
        )
    assert not (tmp_path / "new").exists()
    assert_told(
        calibrate.main,
        [*base, "output.url=/proc/nothing/out"],
        "^output.url=/proc/nothing/out: cannot be written",
    )
    buffer = io.BytesIO()
    Image.new("L", (32, 32), 200).save(buffer, "PNG")
    write_shard(shards / "grey.tar", [("a.png", buffer.getvalue())])
    assert calibrate.main([base[0], f"input.shards={shards}/grey.tar", output("new")]) == 0  # one flat image
