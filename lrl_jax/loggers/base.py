"""The protocol of loggers: where the scalars, figures and videos of a run go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Logger(Protocol):
    """Takes the scalars, figures and videos of a run.

    A subclass needs `log` alone, the other methods do nothing by default. A class that does not
    inherit has all of them. `lrl_jax.train(loggers=[...])` takes any number of loggers, and a
    `Collector` takes one as its `writer`. Methods are called on the host, by one thread.

    What `begin` raises ends a run before it starts; what the others raise is a warning, and the
    run continues.
    """

    def begin(self, run: Path, config: Mapping[str, Any], resume_at: int | None) -> None:
        """Get ready; called once, before anything is logged.

        Args:
            run: the folder of the run, which exists.
            config: its settings, as plain JSON.
            resume_at: environment steps of the checkpoint that the run resumes from; what was
                logged later will be logged again. None for a new run.
        """

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log scalars after `step` environment steps."""
        raise NotImplementedError(f"{type(self).__name__} does not define log(step, scalars).")

    def figure(self, step: int, name: str, file: Path) -> None:
        """Log a picture, a PNG file."""

    def video(self, step: int, name: str, file: Path) -> None:
        """Log an animation, a GIF file."""

    def close(self) -> None:
        """Finish; nothing is logged afterwards."""


METHODS = ("begin", "log", "figure", "video", "close")


def check_logger(logger: Any) -> Any:
    """Return a logger if it is one.

    Raises:
        TypeError: with the methods that it lacks.
    """
    lacking = [name for name in METHODS if not callable(getattr(logger, name, None))]
    if isinstance(logger, type) or lacking:
        raise TypeError(
            f"{logger!r} is not a logger: "
            + ("it is a class, make one" if isinstance(logger, type) else f"it has no {lacking}")
            + ". Inherit from lrl_jax.loggers.Logger and define log(step, scalars)."
        )
    if getattr(type(logger), "log", None) is Logger.log:
        raise TypeError(f"{type(logger).__name__} does not define log(step, scalars).")
    return logger


def check_writer(writer: Any) -> Any:
    """Return what `write_scalars` can write to: a logger, or a TensorBoard writer.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(writer, type) or not any(
        callable(getattr(writer, name, None)) for name in ("log", "add_scalar")
    ):
        raise TypeError(
            f"writer has no method log or add_scalar: {writer!r}. Give a logger of "
            f"lrl_jax.loggers, or a TensorBoard writer."
        )
    return writer


def write_scalars(writer: Any, step: int, scalars: Mapping[str, Any]) -> None:
    """Write scalars to a logger, or to a TensorBoard writer with `add_scalar`; None is left out."""
    scalars = {name: value for name, value in scalars.items() if value is not None}
    if callable(getattr(writer, "log", None)):
        writer.log(step, {name: plain(value) for name, value in scalars.items()})
        return
    for name, value in scalars.items():
        writer.add_scalar(name, value, step)


def plain(value: Any) -> Any:
    """A scalar of NumPy or JAX as Python's."""
    return value.item() if isinstance(value, np.generic) or hasattr(value, "item") else value
