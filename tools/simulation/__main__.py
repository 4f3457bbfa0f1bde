"""Plan a run of tokenize_corpus: time, goodput and cost for numbers of workers, in virtual time.

    python -m tools.simulation [CONFIG.yaml] [num_workers=[64,128]] [output.url=s3://bucket/plan]

Without arguments it plans one billion images on spot nodes. Shards are handed out by the code that hands them out in
the real run. What is measured and what is assumed says docs/scale.md, and `--help` of every option.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec

from tatok_pipe import storage
from tatok_pipe.config.load import load_config, to_dict
from tatok_pipe.errors import EXIT_DONE, UserError
from tatok_pipe.runs.job import run_entry
from tatok_pipe.version import __version__
from tools.simulation import Row, format_tables, sweep, to_json
from tools.simulation.options import SimulateCorpusConfig


def main(argv: list[str]) -> int:
    config = load_config(
        SimulateCorpusConfig,
        argv,
        prog="tools.simulation",
        description=str(__doc__).partition("\n")[0],
    )
    storage.configure(config.storage)
    if config.output.url is not None and find_spec("matplotlib") is None:
        raise UserError(
            'matplotlib: not installed, and output.url asks for a plot; pip install "tatok_pipe[evaluation]"'
        )
    rows = list(sweep(config))
    for line in format_tables(rows):
        print(line)
    if config.output.url is not None:
        _write(config.output.url, config, rows)
    return EXIT_DONE


def _write(url: str, config: SimulateCorpusConfig, rows: Sequence[Row]) -> None:
    from tools.simulation import plots  # which needs matplotlib

    results = {"tatok_pipe": __version__, "config": to_dict(config), "rows": to_json(rows)}
    files = {
        "results.json": (json.dumps(results, indent=1) + "\n").encode(),
        "tables.md": ("\n".join(format_tables(rows)) + "\n").encode(),
        "scale.svg": plots.render(rows, config, image_format="svg"),
        "scale.png": plots.render(rows, config, image_format="png"),
    }
    for name, content in files.items():
        try:
            storage.publish_bytes(content, storage.join(url, name), exclusive=False)
        except OSError as error:
            raise UserError(
                f"output.url={storage.redact(url)}: cannot be written ({error}); give another URL"
            ) from error


if __name__ == "__main__":
    run_entry(main)
