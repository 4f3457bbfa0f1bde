"""All jobs from end to end on real photographs: `python -m tatok_pipe.demo`, or `make demo`.

Starts a real S3 server, puts the demo corpus into a bucket, tokenizes s3:// to s3:// with two actors, writes the
report, trains a tiny generator on the tokens, draws images from it, and copies dataset, generator and images out.
Everything but the results lies in a temporary folder and is gone at the end.
"""

from tatok_pipe.commands.demo.options import DemoConfig
from tatok_pipe.runs.entry import Entry

main = Entry("demo", DemoConfig, description=__doc__)

if __name__ == "__main__":
    main.leave_with()
