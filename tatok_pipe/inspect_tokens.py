"""Report on a token dataset, a table and one HTML page with charts and pictures; or verify and repair the dataset.

    python -m tatok_pipe.inspect_tokens [CONFIG.yaml] input.url=s3://bucket/tokens [--verify | --repair]

Without arguments it inspects ./tatok_out. The page is one file that needs no network; it shows originals where the
image shards are still there, and reconstructions where the tokenizer is found.
"""

from tatok_pipe.commands.inspect_tokens.options import InspectTokensConfig
from tatok_pipe.runs.entry import Entry

main = Entry("inspect_tokens", InspectTokensConfig, description=__doc__)

if __name__ == "__main__":
    main.leave_with()
