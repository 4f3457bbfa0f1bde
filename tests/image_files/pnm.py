"""PBM, PGM and PPM, plain and raw, of every maximum; and their relatives that are not read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.image_files.case import SIDE, Case, grey, pack_bits, picture, shown

_MAXIMA = (1, 2, 3, 7, 15, 31, 100, 127, 254, 255, 256, 1023, 4095, 16383, 65534, 65535)


def pnm_cases() -> Iterator[Case]:
    for comment in ("", "# a comment\n"):
        size = f"{comment}{SIDE} {SIDE}\n"
        ink = (grey() < 128).astype(np.uint8)
        truth = shown(1 - ink, 1)
        text = "\n".join(" ".join(map(str, row)) for row in ink)
        detail = "comment" if comment else "no comment"
        yield Case("PPM", "bitmap, plain (P1)", detail, f"P1\n{size}{text}\n".encode(), truth)
        dense = "\n".join("".join(map(str, row)) for row in ink)
        yield Case("PPM", "bitmap, plain (P1)", f"{detail}, dense", f"P1\n{size}{dense}\n".encode(), truth)
        packed = b"".join(pack_bits(ink, 1))
        yield Case("PPM", "bitmap, raw (P4)", detail, f"P4\n{size}".encode() + packed, truth)
        for values, plain, raw, name in ((grey(), "P2", "P5", "grey"), (picture(), "P3", "P6", "RGB")):
            for most in _MAXIMA:
                scaled = np.round(values / 255 * most).astype(np.uint16)
                truth = scaled / most * 255
                truth = np.dstack([truth] * 3) if truth.ndim == 2 else truth
                depth = "up to 255" if most < 256 else "more than 255"
                text = "\n".join(" ".join(map(str, row.reshape(-1))) for row in scaled)
                data = f"{plain}\n{size}{most}\n{text}\n".encode()
                yield Case("PPM", f"{name}, plain ({plain}), {depth}", f"{most}, {detail}", data, truth)
                body = scaled.astype("u1" if most < 256 else ">u2").tobytes()
                data = f"{raw}\n{size}{most}\n".encode() + body
                yield Case("PPM", f"{name}, raw ({raw}), {depth}", f"{most}, {detail}", data, truth)
