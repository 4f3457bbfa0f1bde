"""The first signal asks, the second one insists, and nothing is left behind."""

from __future__ import annotations

import os
import signal

import pytest

from tatok_pipe.stop_signal import StopSignal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_asks_second_insists(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    stop = StopSignal()
    with pytest.raises(KeyboardInterrupt), stop:
        assert not stop.is_requested and stop.seconds == 0
        os.kill(os.getpid(), number)
        assert stop.is_requested and stop.seconds >= 0
        os.kill(os.getpid(), number)
    assert {each: signal.getsignal(each) for each in before} == before
