"""How far a run is, as text in two columns and as a small page that a browser loads again by itself."""

from __future__ import annotations

import time
from html import escape

from tatok_pipe.report.document import render_document, render_facts, render_tiles
from tatok_pipe.report.figures import percent
from tatok_pipe.runs.progress import format_duration
from tatok_pipe.runs.progress_file import RUNNING, Progress

_BAR_CHARACTERS = 32
_REFRESH_S = 5


def share_done(progress: Progress) -> float:
    """Of the shards, those that are over."""
    return (progress.shards_done + progress.shards_failed) / max(1, progress.shards_planned)


def progress_lines(progress: Progress, *, url: str, told: str) -> list[tuple[str, str]]:
    """Labels and values for a terminal. `url` is shown as it is; `told` says how it is with the run."""
    filled = round(share_done(progress) * _BAR_CHARACTERS)
    bar = "█" * filled + "░" * (_BAR_CHARACTERS - filled)
    return [
        (progress.entry, url),
        ("", told),
        ("", f"{bar} {percent(share_done(progress))}"),
        *_facts(progress),
    ]


def progress_line(progress: Progress, *, told: str) -> str:
    """The same in a line, for what is no terminal."""
    return "; ".join([told, *(f"{label} {value}" for label, value in _facts(progress))])


def render_progress(progress: Progress, *, url: str, told: str, is_over: bool) -> str:
    """The page. It is loaded again until the run `is_over`."""
    name = url.rstrip("/").rpartition("/")[2] or url
    share = percent(share_done(progress))
    bar = (
        f'<svg viewBox="0 0 100 3" role="img" aria-label="{escape(share)}"><rect width="100" height="3" '
        f'opacity="0.15"/><rect width="{100 * share_done(progress):.1f}" height="3"/></svg>'
    )
    tiles = [
        (share, "", "of the shards"),
        (f"{progress.images_per_s:.1f}", f"{progress.row_name}s/s", "this run"),
        (_left(progress), "", "left"),
    ]
    return render_document(
        title=f"{progress.entry} {name}",
        head=f"<h1>{escape(progress.entry)}: {escape(name)}</h1><p>{escape(told)}</p>",
        body=render_tiles(tiles) + bar + render_facts([("Output", url), *_facts(progress)]),
        footer="Made by <code>python -m tatok_pipe.inspect_tokens --watch</code>, and as old as its last line says.",
        refresh_s=None if is_over else _REFRESH_S,
    )


def tell_status(progress: Progress) -> str:
    """How it is with the run, by its own word."""
    where = f"process {progress.process} on {progress.host}"
    if progress.status == RUNNING:
        return f"running, {where}, since {progress.begun}"
    return f"{progress.status} (exit code {progress.exit_code}), {where}, at {progress.written}"


def _facts(progress: Progress) -> list[tuple[str, str]]:
    name = progress.row_name
    failed = f", {progress.shards_failed} failed" if progress.shards_failed else ""
    facts = [
        ("shards", f"{progress.shards_done} of {progress.shards_planned}{failed}"),
        (f"{name}s", f"{progress.images}, {progress.images_per_s:.1f} {name}s/s"),
        *([(f"tokens/{name}", f"{progress.tokens_per_image:.1f}")] if progress.tokens else []),
        ("quarantined", str(progress.quarantined)),
    ]
    if progress.actors_wanted:
        facts.append(("actors", f"{progress.actors} of {progress.actors_wanted}"))
    age_s = max(0.0, time.time() - progress.written_s())
    return [*facts, ("left", _left(progress)), ("told", f"{format_duration(age_s)} ago")]


def _left(progress: Progress) -> str:
    return "?" if progress.left_s is None else format_duration(progress.left_s)
