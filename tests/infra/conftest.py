"""A Ray head and an S3 server that all tests of submitted jobs share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tatok_pipe.commands.demo.server import S3Server
from tests.infra.ray_head import RayHead, ray_head


@pytest.fixture(scope="session")
def head(s3_server: S3Server) -> Iterator[RayHead]:
    # The node's own credentials: a submission brings none.
    with ray_head(s3_server.environment()) as head:
        yield head
