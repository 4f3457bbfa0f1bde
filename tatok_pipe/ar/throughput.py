"""What a device can do at best, and how much of it a training reaches: model-FLOPs utilisation."""

from __future__ import annotations

import time

import torch

# Dense bf16 peaks of data sheets, FLOP/s, by a part of the device's name; the first that fits counts.
_PEAK_BF16 = (
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("RTX 4090", 165e12),
    ("V100", 125e12),
    ("T4", 65e12),
)
_SIDE = 1024
_REPEATS = 5


class Ceiling:
    """What utilisation is measured against: the data sheet's figure for a GPU that is known, in bf16; else the best
    speed of a matrix product seen so far on this machine, with this process's threads."""

    def __init__(self, device: torch.device, *, precision: str) -> None:
        self._device = device
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._data_sheet: float | None = None
        if device.type == "cuda" and self._dtype is torch.bfloat16:
            name = torch.cuda.get_device_name(device)
            self._data_sheet = next((peak for part, peak in _PEAK_BF16 if part in name), None)
        self._best = 0.0

    def flops_per_s(self) -> float:
        """Measures again where it has to, some milliseconds: a machine that was busy before may not be now."""
        if self._data_sheet is not None:
            return self._data_sheet
        left = torch.randn(_SIDE, _SIDE, device=self._device, dtype=self._dtype)
        for _ in range(_REPEATS):
            _synchronize(self._device)
            start = time.perf_counter()
            torch.mm(left, left)
            _synchronize(self._device)
            self._best = max(self._best, 2 * _SIDE**3 / (time.perf_counter() - start))
        return self._best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Throughput:
    """Counts what a training did between two lines of its log, this process's clock."""

    def __init__(self) -> None:
        self._start_s = time.perf_counter()
        self._wait_s = 0.0
        self._steps = self._elements = self._slots = self._sequences = 0

    def waited(self, seconds: float) -> None:
        """Time that the training stood still for data."""
        self._wait_s += seconds

    def did(self, *, elements: int, slots: int, sequences: int) -> None:
        """A step: elements that are no padding, places in its rows, and sequences, over all processes."""
        self._steps += 1
        self._elements += elements
        self._slots += slots
        self._sequences += sequences

    def take(self, *, flops_per_element: float, peak_flops_per_s: float) -> dict[str, float]:
        """The figures since the last call; `peak_flops_per_s` is the ceiling of all processes together."""
        now = time.perf_counter()
        seconds = max(now - self._start_s, 1e-9)
        figures = {
            "tokens_per_s": self._elements / seconds,
            "images_per_s": self._sequences / seconds,
            "step_s": seconds / max(1, self._steps),
            "fill": self._elements / max(1, self._slots),
            "mfu": self._elements * flops_per_element / seconds / peak_flops_per_s,
            "data_wait_share": self._wait_s / seconds,
        }
        self.__init__()
        return figures
