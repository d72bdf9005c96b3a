"""SIGINT (Ctrl-C) and SIGTERM: a training finishes its step and writes its state first; anything else stops at once."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECOND_S = 1.0  # one Ctrl-C reaches a process twice where a launcher forwards it


class Stopped(KeyboardInterrupt):
    """A signal ended the job.

    Attributes:
        signum: which.
        status: what a shell expects as the exit status: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, signum: int, reached: str = "") -> None:
        written = f"; the state at {reached} is written" if reached else ""
        super().__init__(f"stopped by {signal.Signals(signum).name}{written}")
        self.signum, self.status = signum, 128 + signum


class StopRequests:
    """Signals of one process: raised as :class:`Stopped`, or kept until a training has come to a whole step.

    A second Ctrl-C is raised at once wherever it comes.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._since, self._deferred, self._process = 0.0, False, os.getpid()

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The handler of the signals."""
        if os.getpid() != self._process:  # of a forked process that loads images: the one that steps decides
            return
        again = self.signum is not None and signum == signal.SIGINT and time.monotonic() - self._since > SECOND_S
        if self.signum is None:
            self.signum, self._since = signum, time.monotonic()
        if again or not self._deferred:
            raise Stopped(self.signum)

    @contextmanager
    def deferred(self, defer: bool = True) -> Iterator[None]:
        """Keep signals, or with False raise them after all; one that was kept before is raised then."""
        before, self._deferred = self._deferred, defer
        try:
            if not defer:
                self.raise_deferred()
            yield
        finally:
            self._deferred = before

    def raise_deferred(self, reached: str = "") -> None:
        """Raise Stopped if a signal was kept."""
        if self.signum is not None:
            raise Stopped(self.signum, reached)


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """The handling of signals while this is entered; outside of the main thread nothing is changed."""
    requests = StopRequests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    before: dict[signal.Signals, Any] = {}
    try:
        for signum in SIGNALS:
            if signal.getsignal(signum) not in (signal.SIG_IGN, None):  # nohup and background jobs ignore some
                before[signum] = signal.signal(signum, requests)
        yield requests
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def leave_signals_to_parent(worker: int) -> None:
    """In a process that loads images: a signal that is sent to all must not end it before its parent is done.

    A second SIGTERM ends it, which is what its parent sends at the latest.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, lambda *_: os._exit(0)))
