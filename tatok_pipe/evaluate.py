"""Measure what a tokenizer, its tokens and a generator are worth: figures, tests, plots and pictures.

    python -m tatok_pipe.evaluate [CONFIG.yaml] suite=all tokenizer=s3://bucket/tokenizer data=s3://bucket/images/

Without arguments it evaluates the packaged tokenizer on the demo corpus, into ./tatok_evaluation. Every suite gets a
folder there: results.json, CSV files, plots and report.html. The same command after a crash or Ctrl-C measures exactly
what is missing.
"""

from __future__ import annotations

from importlib.util import find_spec

from tatok_pipe import storage
from tatok_pipe.config import load_config
from tatok_pipe.errors import UserError
from tatok_pipe.evaluate_config import EvaluateConfig
from tatok_pipe.job import JobSummary, job_summary, run_entry

# What `pip install "tatok_pipe[evaluation]"` brings, and no other job needs.
_NEEDED = ("efficientnet_lite_pytorch", "matplotlib", "scipy", "torchmetrics")


def main(argv: list[str]) -> int:
    with job_summary("evaluate") as summary:
        summary.exit_code = _run(argv, summary)
    return summary.exit_code


def _run(argv: list[str], summary: JobSummary) -> int:
    config = load_config(
        EvaluateConfig, argv, prog="tatok_pipe.evaluate", description=(__doc__ or "").split("\n\n")[0]
    )
    storage.configure(config.storage)
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UserError(f'{", ".join(missing)}: not installed; pip install "tatok_pipe[evaluation]"')
    from tatok_pipe import evaluation_run  # which imports them

    return evaluation_run.run(config, argv=argv, summary=summary)


if __name__ == "__main__":
    # By its importable name, so that what Ray's actors get is imported there and not pickled by value.
    from tatok_pipe import evaluate

    run_entry(evaluate.main)
