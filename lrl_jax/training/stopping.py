"""Stopping a run by signals, after the current chunk."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and has written a checkpoint.

    Attributes:
        run: its folder.
        env_steps: steps of the checkpoint.
        signal: the signal that asked.
    """

    def __init__(self, run: Path, env_steps: int, number: int):
        super().__init__(
            f"stopped by {signal.Signals(number).name} after {env_steps} environment steps, all "
            f"saved. Go on with: lrl-jax resume {run}"
        )
        self.run, self.env_steps, self.signal = run, env_steps, number


@contextlib.contextmanager
def stop_signals(run: Path) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of ending at once; a second one interrupts.

    Yields:
        A list that holds the signal once one has come.
    """
    got: list[int] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        if got:
            raise KeyboardInterrupt(f"stopped within a chunk: lrl-jax resume {run} goes back.")
        got.append(number)
        name = signal.Signals(number).name
        print(f"\n{name}: saving after the current chunk; once more to stop at once", flush=True)

    if threading.current_thread() is not threading.main_thread():
        yield got
        return
    old = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        old[number] = signal.signal(number, on_signal)
    try:
        yield got
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
