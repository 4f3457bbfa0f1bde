"""Train TaTok on image shards, calibrate its filters, measure it on held-out images.

    python -m tatok_pipe.train_tokenizer configs/tokenizer/tiny.yaml \\
        input.shards=… validation.shards=… output.url=…

The same command after a crash or Ctrl-C goes on from the last checkpoint in `<output.url>/checkpoints`.
"""

from tatok_pipe.commands.train_tokenizer.options import TrainTokenizerConfig
from tatok_pipe.runs.entry import Entry

main = Entry("train_tokenizer", TrainTokenizerConfig, description=__doc__)

if __name__ == "__main__":
    main.leave_with()
