"""All export formats, by the name that options have for them."""

from __future__ import annotations

from tatok_pipe.tokens.exporting.base import Exporter
from tatok_pipe.tokens.exporting.litdata import LitData
from tatok_pipe.tokens.exporting.mds import Mds
from tatok_pipe.tokens.exporting.megatron import Megatron
from tatok_pipe.tokens.exporting.webdataset import WebDataset

_ALL: tuple[Exporter, ...] = (WebDataset(), Mds(), LitData(), Megatron())
EXPORTERS = {each.name: each for each in _ALL}
