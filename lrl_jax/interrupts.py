"""Signals that wait until it is safe to raise.

What a jitted call donates is lost if an exception keeps its results from being assigned, and a pipe
that was half read does not fit its next question. Loops that do such things are `held`: handlers of
signals, such as Python's own for Ctrl-C, run where they are let through, or at the end.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class _Gate:
    """Stands in for the handlers of signals while something is held."""

    def __init__(self):
        self.depth, self.shut = 0, False
        self._own: dict[int, Any] = {}
        self._waiting: dict[int, Any] = {}

    def __call__(self, number: int, frame: Any) -> None:
        if self.shut:
            self._waiting[number] = frame
            return
        self.shut = self.depth > 0  # if the handler raises, what unwinds is not torn again
        self._own[number](number, frame)
        self.shut = False

    def install(self) -> None:
        """Replace the handlers written in Python, the only ones that can raise."""
        self._waiting.clear()
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler) and handler is not self:
                self._own[number] = handler
                signal.signal(number, self)

    def remove(self) -> None:
        """Put the handlers back, except those that other code has replaced."""
        for number, handler in self._own.items():
            if signal.getsignal(number) is self:
                signal.signal(number, handler)

    def answer(self) -> None:
        """Run the handlers of what came in the meantime, once each."""
        if self._waiting:
            came, self._waiting = self._waiting, {}
            with contextlib.ExitStack() as stack:  # all of them, also where one raises
                for number, frame in came.items():
                    stack.callback(self._own[number], number, frame)


_gate = _Gate()


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let the handlers of signals wait for the end of the block, or for `let_through` in it.

    In other threads than the main one, where no handler runs, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _gate.depth, _gate.shut
    try:  # from here on: until all are installed, one that is not may raise
        _gate.depth, _gate.shut = before[0] + 1, True
        if not before[0]:
            _gate.install()
        yield
    finally:
        _gate.depth, _gate.shut = before
        if not _gate.depth:
            _gate.remove()
        if not _gate.shut:
            _gate.answer()


@contextlib.contextmanager
def let_through() -> Iterator[None]:
    """Within `held`, a block that handlers may interrupt; those that wait run first."""
    if not _gate.depth or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _gate.shut
    try:
        _gate.shut = False
        _gate.answer()
        yield
    finally:
        _gate.shut = before
