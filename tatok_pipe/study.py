"""Compare arms of adaptive tokens as one declared experiment: tokenizers, tokens, generators, drawings, measures.

    python -m tatok_pipe.study configs/study/headline.yaml data.train=cifar/train-000000.tar \
        data.validation=cifar/train-000001.tar 'data.test=cifar/test-*.tar'

Every part is kept under a digest of what it depends on: the same command after a crash or Ctrl-C makes what is missing,
and another arm costs that arm. study.html in the output is one page with tables, plots, pictures and verdicts.
"""

from tatok_pipe.commands.study.options import StudyConfig
from tatok_pipe.runs.entry import Entry

main = Entry("study", StudyConfig, description=__doc__)

if __name__ == "__main__":
    main.leave_with()
