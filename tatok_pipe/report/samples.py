"""The page of generated images: each with its class, the tokens it took, and where its patches are.

The same images give the same bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import numpy as np

from tatok_pipe.ar.generation.exports import decode
from tatok_pipe.ar.generation.layout import GeneratedImage
from tatok_pipe.report.document import draw_grid, render_document, render_facts, render_pane, render_tiles
from tatok_pipe.report.figures import count
from tatok_pipe.report.gallery import dim_dropped, to_data_uri
from tatok_pipe.tokens.spec import TokenSpec


def render_samples(
    images: Sequence[GeneratedImage],
    *,
    url: str,
    spec: TokenSpec,
    image_format: str,
    num_images: int,
    mean_tokens: float,
    std_tokens: float | None,
    generator_fingerprint: str,
    settings: str,
) -> str:
    """The whole document on some `images` of the run at `url` (without secrets); the figures are those of all
    `num_images`."""
    name = url.rstrip("/").rpartition("/")[2] or url
    fixed = spec.num_globals + spec.num_patches
    facts = [
        ("Generator", f"fingerprint {generator_fingerprint[:12]}"),
        ("Tokenizer", f"fingerprint {spec.tokenizer_fingerprint[:12]}"),
        (
            "Images",
            f"{spec.image_size} × {spec.image_size} px, from {count(spec.num_globals, 'global token')} and at most "
            f"{count(spec.num_patches, 'patch token')} each",
        ),
        ("Drawn with", settings),
    ]
    tiles = [
        (f"{num_images:,}", "", "images"),
        (f"{mean_tokens:,.1f}", "", "tokens per image")
        if std_tokens is None
        else (f"{mean_tokens:,.1f}", f"± {std_tokens:,.1f}", "tokens per image, mean and std"),
        (f"{fixed / mean_tokens:,.2f}", "×", f"fewer tokens than the {fixed:,} with all patches"),
    ]
    shown = f", the first {len(images):,} of {num_images:,}" if len(images) < num_images else ""
    cards = "".join(_render_image(image, spec, image_format) for image in images)
    body = (
        f"{render_tiles(tiles)}<section><h2>Images{shown}</h2>"
        "<p>Left: the image. Right, outlined: the patches that the generator gave a token. The decoder filled in the "
        "others, here grey and dark, from the global tokens and the outlined patches.</p>"
        f'<div class="grid gallery samples">{cards}</div></section>'
    )
    return render_document(
        title=f"Generated images {name}",
        head=f'<p class="eyebrow">Generated images</p><h1>{escape(name)}</h1><p class="muted">{escape(url)}</p>'
        f"{render_facts(facts)}",
        body=body,
        footer="Made by <code>python -m tatok_pipe.generate</code>.",
    )


def _render_image(image: GeneratedImage, spec: TokenSpec, image_format: str) -> str:
    positions = np.array(image.patch_positions, np.int64)
    source = f"data:image/{image_format};base64,{base64.b64encode(image.image).decode('ascii')}"
    dimmed = dim_dropped(decode(image.image), positions, patch_size=spec.patch_size)
    kept = f"{len(positions):,} of {count(spec.num_patches, 'patch', 'patches')}"
    grid = draw_grid(positions, side=spec.image_size // spec.patch_size)
    panes = (
        render_pane("", source, f"Image {image.number}", image_size=spec.image_size),
        render_pane(
            "",
            to_data_uri(dimmed),
            f"Image {image.number}, only its {kept}",
            image_size=spec.image_size,
            over=grid,
        ),
    )
    label = "" if image.label is None else f" · {spec.show_class(image.label)}"
    tokens = f"{count(image.num_tokens, 'token')}: {len(image.global_codes):,} global + {kept}"
    return (
        f'<figure class="card"><div class="panes">{"".join(panes)}</div>'
        f'<figcaption><span class="name">{image.name}{escape(label)}</span><br>{escape(tokens)}</figcaption></figure>'
    )
