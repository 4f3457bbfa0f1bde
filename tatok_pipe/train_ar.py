"""Train the autoregressive generator on a token dataset.

    python -m tatok_pipe.train_ar [configs/ar/tiny.yaml] input.url=s3://bucket/tokens output.url=s3://bucket/generator

The same command after a crash, a lost node or Ctrl-C goes on from the last checkpoint in `<output.url>/checkpoints`.
It ends with `<output.url>/generator`, one safetensors file to generate with.
"""

from tatok_pipe.commands.train_ar.options import TrainArConfig
from tatok_pipe.runs.entry import Entry

main = Entry("train_ar", TrainArConfig, description=__doc__)

if __name__ == "__main__":
    main.leave_with()
