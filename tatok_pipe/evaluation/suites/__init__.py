"""What can be evaluated, by name. A suite measures parts, on actors, and makes findings of all rows, in the driver."""

from __future__ import annotations

from tatok_pipe.evaluation.suites.base import Row, Suite
from tatok_pipe.evaluation.suites.corpus.suite import Corpus
from tatok_pipe.evaluation.suites.fine_detail.suite import FineDetail
from tatok_pipe.evaluation.suites.generation.suite import Generation
from tatok_pipe.evaluation.suites.information.suite import Information
from tatok_pipe.evaluation.suites.rate_distortion.suite import RateDistortion
from tatok_pipe.evaluation.suites.reconstruction.suite import Reconstruction

_ALL: tuple[Suite, ...] = (
    Reconstruction(),
    RateDistortion(),
    FineDetail(),
    Information(),
    Generation(),
    Corpus(),
)
SUITES = {suite.name: suite for suite in _ALL}

__all__ = ["SUITES", "Row", "Suite"]
