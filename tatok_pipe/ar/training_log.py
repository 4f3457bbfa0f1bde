"""What a training tells: figures of its curve and of its speed, in words."""

from __future__ import annotations

from typing import Any

_PARTS = ("global", "position", "patch")


def last_losses(curve: list[dict[str, Any]]) -> dict[str, float | None]:
    """Nats a code of the last logged line, `loss`, and of the last held-out images, `held_out_loss`; None: there is no
    such number."""
    names = {"train": "loss", "held_out": "held_out_loss"}
    last = {names[point["split"]]: point["loss"] for point in curve if "loss" in point}
    return {name: None if value is None else round(value, 4) for name, value in last.items()}


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
