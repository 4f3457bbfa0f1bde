"""Measure what a tokenizer, its tokens and a generator are worth: figures, tests, plots and pictures.

    python -m tatok_pipe.evaluate [CONFIG.yaml] suite=all tokenizer=s3://bucket/tokenizer data=s3://bucket/images/

Without arguments it evaluates the packaged tokenizer on the demo corpus, into ./tatok_evaluation. Every suite gets a
folder there: results.json, CSV files, plots and report.html. The same command after a crash or Ctrl-C measures exactly
what is missing.
"""

from tatok_pipe.commands.evaluate.options import EvaluateConfig
from tatok_pipe.runs.entry import Entry

main = Entry("evaluate", EvaluateConfig, description=__doc__)

if __name__ == "__main__":
    main.leave_with()
