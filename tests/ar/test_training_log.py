"""What a training tells in words."""

from __future__ import annotations

from tatok_pipe.ar.training_log import last_losses, loss_line, speed_line

LOSSES = {"loss": 6.8124, "global_nats": 6.1, "position_nats": 1.25, "patch_nats": 5.5, "grad_norm": 0.5}
SPEED = {
    "tokens_per_s": 34_120.4, "images_per_s": 812.06, "step_s": 0.25, "fill": 0.9971, "mfu": 0.412,
    "data_wait_share": 0.003,
}  # fmt: skip


def test_lines_are_short() -> None:
    assert loss_line(LOSSES) == "loss 6.812 (global 6.100, position 1.250, patch 5.500)"
    assert loss_line({"loss": 1.0, "patch_nats": 0.5}) == "loss 1.000 (patch 0.500)"
    assert speed_line(SPEED) == "34,120 tokens/s, 812.1 images/s, fill 99.7 %, MFU 41 %, data wait 0.3 %"


def test_the_last_losses_are_those_of_either_split() -> None:
    curve = [
        {"step": 5, "split": "train", "loss": 7.0},
        {"step": 5, "split": "held_out", "loss": 6.99999},
        {"step": 10, "split": "train", "loss": None},
        {"step": 15, "split": "train", "grad_norm": 0.0},
    ]
    assert last_losses(curve) == {"loss": None, "held_out_loss": 7.0}
    assert last_losses([]) == {}
