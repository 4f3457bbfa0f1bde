"""What a training tells: one line a logged step, TensorBoard scalars, and the curve that travels with checkpoints."""

from __future__ import annotations

from typing import Any

from tatok_pipe.storage.json_types import to_json_types
from tatok_pipe.training.tensorboard import TensorBoard

_PARTS = ("global", "position", "patch")


class TrainingLog:
    """Process 0's. `curve` holds what does not depend on the machine: a resumed training has the same one."""

    def __init__(self, tensorboard_url: str, *, curve: list[dict[str, Any]], first_step: int) -> None:
        self.curve = curve
        self._board = TensorBoard(tensorboard_url, first_step=first_step)

    def train(self, step: int, losses: dict[str, float], speed: dict[str, float]) -> None:
        """A line's worth of training: `losses` are exact, `speed` is this machine's."""
        self.curve.append({"step": step, "split": "train"} | to_json_types(losses))
        self._board.scalars("train", step, losses)
        self._board.scalars("speed", step, speed)

    def held_out(self, step: int, losses: dict[str, float]) -> None:
        self.curve.append({"step": step, "split": "held_out"} | to_json_types(losses))
        self._board.scalars("held_out", step, losses)

    @property
    def last_losses(self) -> dict[str, float | None]:
        """Nats a code of the last logged line, `loss`, and of the last held-out images, `held_out_loss`; None: there
        is no such number."""
        names = {"train": "loss", "held_out": "held_out_loss"}
        last = {names[point["split"]]: point["loss"] for point in self.curve if "loss" in point}
        return {name: None if value is None else round(value, 4) for name, value in last.items()}

    def publish(self) -> None:
        """Put the scalars beside the checkpoints."""
        self._board.publish()

    def close(self) -> None:
        self._board.close()


def loss_terms(losses: dict[str, float]) -> dict[str, float]:
    """Of a window's figures the loss, as `total`, and its three parts; nats. What was not seen is left out."""
    parts = {name: losses[f"{name}_nats"] for name in _PARTS if f"{name}_nats" in losses}
    return ({"total": losses["loss"]} if "loss" in losses else {}) | parts


def loss_line(losses: dict[str, float]) -> str:
    """`loss 6.812 (global 6.105, position 1.204, patch 5.911)`, nats."""
    terms = loss_terms(losses)
    total = terms.pop("total", float("nan"))
    return f"loss {total:.3f} ({', '.join(f'{name} {value:.3f}' for name, value in terms.items())})"


def speed_line(speed: dict[str, float]) -> str:
    """`34,120 tokens/s, fill 99.7 %, MFU 41 %, data wait 0.3 %`."""
    return (
        f"{speed['tokens_per_s']:,.0f} tokens/s, {speed['images_per_s']:,.1f} images/s, "
        f"fill {100 * speed['fill']:.1f} %, MFU {100 * speed['mfu']:.0f} %, "
        f"data wait {100 * speed['data_wait_share']:.1f} %"
    )
