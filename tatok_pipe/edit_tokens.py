"""Take rows out of a token dataset, join columns to it, filter it again, or export it to other loaders.

    python -m tatok_pipe.edit_tokens [CONFIG.yaml] input.url=s3://bucket/tokens remove.keys=@keys.txt

The token shards that have them are written anew without them, statistics and all; hashes of their keys are kept, so
that neither tokenize_corpus nor a repair brings them back. With output.url= a dataset that holds scores is filtered to
another budget, into a dataset of its own; with export= too its rows become files of another loader. Killed at any
point, the same command does the rest.
"""

from tatok_pipe.commands.edit_tokens.options import EditTokensConfig
from tatok_pipe.runs.entry import Entry

main = Entry("edit_tokens", EditTokensConfig, description=__doc__)

if __name__ == "__main__":
    main.leave_with()
