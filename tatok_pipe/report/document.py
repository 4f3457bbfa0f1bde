"""HTML pages that ask for nothing: styles and pictures are inside, and a page forbids itself scripts and requests."""

from __future__ import annotations

from html import escape
from importlib import resources

import numpy as np

from tatok_pipe.report.gallery import outline_kept

_SMALL_IMAGE_PIXELS = 96  # below it a browser's smoothing would hide what the pixels are
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render_document(*, title: str, head: str, body: str, footer: str, refresh_s: int | None = None) -> str:
    """The whole document. `title` is text; `head`, `body` and `footer` are HTML. A browser loads it again every
    `refresh_s` seconds."""
    refresh = f'<meta http-equiv="refresh" content="{refresh_s}">' if refresh_s else ""
    style = (resources.files("tatok_pipe.report") / "page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">{refresh}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,">'
        f"<style>\n{style}</style></head>\n<body><header>{head}</header><main>{body}</main>\n"
        f"<footer><p>{footer}</p></footer></body></html>\n"
    )


def render_facts(facts: list[tuple[str, str]]) -> str:
    """Names and values, as text."""
    items = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in facts)
    return f'<dl class="facts">{items}</dl>'


def render_tiles(tiles: list[tuple[str, str, str]]) -> str:
    """Value, unit and label of each large figure, as text."""
    items = "".join(
        f'<div class="card tile"><dt>{escape(label)}</dt><dd>{escape(value)}'
        + (f' <span class="unit">{escape(unit)}</span>' if unit else "")
        + "</dd></div>"
        for value, unit, label in tiles
    )
    return f'<dl class="tiles">{items}</dl>'


def render_pane(label: str, source: str, description: str, *, image_size: int, over: str = "") -> str:
    """A square picture of a data: URI with SVG over it and a label below it; an empty one takes no place."""
    style = ' class="small"' if image_size < _SMALL_IMAGE_PIXELS else ""
    image = f'<img{style} alt="{escape(description)}" src="{source}">'
    return f'<div class="pane"><div class="picture">{image}{over}</div>{escape(label)}</div>'


def draw_grid(positions: np.ndarray, *, side: int) -> str:
    """SVG of a side × side grid with the kept patches, at raster `positions`, outlined."""
    lines = "".join(f"M{at} 0v{side}M0 {at}h{side}" for at in range(1, side))
    border = outline_kept(positions, side=side)
    return (
        f'<svg viewBox="0 0 {side} {side}" aria-hidden="true"><path class="lines" d="{lines}"/>'
        f'<path class="border" d="{border}"/></svg>'
    )
