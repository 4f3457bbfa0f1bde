"""What all fault tests share."""

from __future__ import annotations

import pytest

from tatok_pipe.commands.demo import server as demo_server
from tests.faults.world import World, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, s3_server: demo_server.S3Server) -> World:
    """The corpora, and the digests of a run over them that nothing happened to."""
    return make_world(tmp_path_factory.mktemp("faults"), s3_server)
