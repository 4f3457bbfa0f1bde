"""Calibrate a tokenizer's filters again: for scores and rules that came after its training, or on other images.

    python -m tatok_pipe.calibrate tokenizer.checkpoint=… input.shards=… output.url=…

The weights, and with them the fingerprint, stay what they are; what is new is which value of a rule gives how many
tokens on average.
"""

from tatok_pipe.commands.calibrate.options import CalibrateConfig
from tatok_pipe.runs.entry import Entry

main = Entry("calibrate", CalibrateConfig, description=__doc__)

if __name__ == "__main__":
    main.leave_with()
