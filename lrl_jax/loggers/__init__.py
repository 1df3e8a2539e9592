"""Loggers: where the scalars, figures and videos of a run go.

`lrl_jax.train(config, loggers=["tensorboard", WandB(project="mazes")])` writes to several at once;
a config and the command line name them, `--loggers tensorboard wandb:mazes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lrl_jax.loggers.base import Logger, check_logger, check_writer, write_scalars
from lrl_jax.loggers.files import CSV, TensorBoard, read_table
from lrl_jax.loggers.trackers import MLflow, Trackio, WandB

#: Loggers by name. `metrics.csv` of a run is written in any case.
NAMED: dict[str, Callable[..., Any]] = {
    "csv": CSV,
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
    "mlflow": MLflow,
}
_OF_FILES = ("csv", "tensorboard")


def check_names(loggers: Any) -> tuple[str, ...]:
    """Return names of loggers as a tuple.

    Raises:
        ValueError, TypeError: for what is not a name, see `make`.
    """
    if isinstance(loggers, str) or not isinstance(loggers, Sequence):
        raise TypeError(f'loggers must be a tuple of names, ("tensorboard",), got {loggers!r}.')
    for each in loggers:
        if not isinstance(each, str):
            raise TypeError(
                f"loggers has {each!r}: a config names them ({', '.join(NAMED)}); give an object "
                f"to lrl_jax.train(loggers=[...])."
            )
        name, colon, project = each.partition(":")
        if name not in NAMED or (colon and (name in _OF_FILES or not project)):
            raise ValueError(
                f"loggers has {each!r}: use one of {', '.join(NAMED)}; of the last three also "
                f"NAME:PROJECT."
            )
    if len({each.partition(":")[0] for each in loggers}) < len(loggers):
        raise ValueError(f"loggers names one twice: {tuple(loggers)}.")
    return tuple(loggers)


def make(loggers: Sequence[str | Logger]) -> list[Logger]:
    """Loggers from their names, "wandb" or "wandb:project"; those that are loggers stay.

    "csv" is left out: the tables of a run are written in any case.

    Raises:
        ImportError: if the package of one is not installed, with the extra that brings it.
        ValueError, TypeError: for other names, and what is not a logger.
    """
    if isinstance(loggers, str) or not isinstance(loggers, Sequence):
        raise TypeError(f"loggers must be a list of names and loggers, got {loggers!r}.")
    check_names([each for each in loggers if isinstance(each, str)])
    made = []
    for each in loggers:
        if not isinstance(each, str):
            made.append(check_logger(each))
        elif each != "csv":
            name, _, project = each.partition(":")
            made.append(NAMED[name](*filter(None, [project])))
    return made


__all__ = [
    "CSV",
    "NAMED",
    "Logger",
    "MLflow",
    "TensorBoard",
    "Trackio",
    "WandB",
    "check_names",
    "check_writer",
    "make",
    "read_table",
    "write_scalars",
]
