"""Turn image shards into a token dataset.

    python -m tatok_pipe.tokenize_corpus [CONFIG.yaml] input.shards=s3://bucket/train output.url=s3://bucket/tokens

Without arguments it tokenizes the demo corpus with the packaged tokenizer into ./tatok_out. Shards that the output
has already are not read again, so the same command after a crash or Ctrl-C completes it.
"""

from tatok_pipe.commands.tokenize_corpus.options import TokenizeCorpusConfig
from tatok_pipe.runs.entry import Entry

main = Entry("tokenize_corpus", TokenizeCorpusConfig, description=__doc__)

if __name__ == "__main__":
    main.leave_with()
