"""Vector environments whose instances live in processes, which may raise or die."""

from __future__ import annotations

import contextlib
import multiprocessing.connection
from collections.abc import Iterator
from typing import Any

from gymnasium.vector import AsyncVectorEnv
from gymnasium.vector.async_vector_env import AsyncState

from lrl_jax import interrupts

_DYING_SECONDS = 5.0


class EnvError(RuntimeError):
    """An environment has raised, or its process has ended.

    Attributes:
        index: of the instance.
        what: has happened to it.
        died: whether its process has ended, so that it has to be made again.
    """

    def __init__(self, index: int, what: str, died: bool = False):
        super().__init__(f"environment {index} {what}")
        self.index, self.what, self.died = index, what, died

    def __reduce__(self) -> Any:
        return type(self), (self.index, self.what, self.died)


def raised(error: BaseException) -> str:
    """What an environment did that raised this."""
    return f"raised {type(error).__name__}: {error}"


class Processes:
    """The processes of an AsyncVectorEnv.

    Where one is lost, Gymnasium waits for it for ever, or fails where the next step meets the pipe
    that is gone. Here it is an EnvError with the index, all processes are ended, and later uses
    raise the same.

    Args:
        vector: the AsyncVectorEnv, without wrappers.
    """

    def __init__(self, vector: AsyncVectorEnv):
        self._vector: Any = vector
        self._lost: EnvError | None = None

    def wait(self) -> None:
        """Wait until all answers can be read: an interrupt here loses none."""
        waiting = {pipe for pipe in self._vector.parent_pipes if pipe is not None}
        with interrupts.let_through():
            while waiting:  # a pipe whose process has died is ready too
                waiting.difference_update(multiprocessing.connection.wait(waiting))

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """A block in which the processes are asked or heard.

        Raises:
            EnvError: where one of them raises or is lost, or was lost before.
        """
        if self._lost is None and (found := self._gone(None)) is not None:  # by other hands
            self._end(found)
        if self._lost is not None:
            raise EnvError(self._lost.index, self._lost.what, died=True)
        try:
            yield
        except BaseException as error:
            found = self._gone(error)
            if found is None:
                raise
            self._end(found)
            raise EnvError(found.index, found.what, died=True) from error

    def _gone(self, error: BaseException | None) -> EnvError | None:
        """Which process can no longer be asked, and why; None if all can."""
        vector = self._vector
        if vector.closed:
            return None
        for i, pipe in enumerate(vector.parent_pipes):
            if pipe is None:
                what = "had raised before" if error is None else raised(error)
                return EnvError(i, f"{what}. {ANEW}")
        if isinstance(error, EOFError | OSError):
            multiprocessing.connection.wait([p.sentinel for p in vector.processes], _DYING_SECONDS)
        for i, process in enumerate(vector.processes):
            if process.exitcode is not None:
                return EnvError(i, f"died: its process ended with code {process.exitcode}. {ANEW}")
        return None

    def _end(self, why: EnvError) -> None:
        """End all processes; what some of them had answered is forgotten."""
        self._lost = why
        for process in self._vector.processes:
            process.kill()
        self._vector._state = AsyncState.DEFAULT  # nothing is pending now
        self._vector.close(terminate=True)


ANEW = (
    "The other processes were ended too: make the vector environment again, and a collector with "
    "state=collector.state continues."
)
