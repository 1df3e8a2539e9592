"""The log of a run: its tables, and the loggers that get the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrl_jax import loggers as kinds
from lrl_jax.loggers import CSV, Logger
from lrl_jax.loggers.files import STEP, Row


class RunLog:
    """Writes the scalars of a run to `metrics.csv`, `seeds.csv`, and to loggers.

    Where a logger fails, as files do on a full disk, a warning says so and the run continues; files
    get what is missing when there is room again. Used as a context manager, it closes the loggers
    at the end.

    Args:
        folder: of the run; made if it is not there.
        resume_at: environment steps of the checkpoint that the run resumes from. Rows up to there
            are kept, later ones dropped. None begins a new log.
        loggers: further loggers, or their names, see `lrl_jax.loggers.make`.
        config: settings of the run as plain JSON, for loggers.

    Attributes:
        rows: of metrics.csv, one for each interim test.
        seed_rows: of seeds.csv, one for each interim test and agent; empty for one agent.
    """

    def __init__(
        self,
        folder: str | Path,
        resume_at: int | None = None,
        loggers: Sequence[str | Logger] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
    ):
        folder = Path(folder)
        self._metrics, self._seeds = CSV(folder / "metrics.csv"), CSV(folder / "seeds.csv")
        self._loggers = kinds.make(loggers)
        self._failing: set[int] = set()  # ids of loggers
        self._told: set[str] = set()
        for logger in (self._metrics, self._seeds, *self._loggers):
            self._call([logger], lambda x: x.begin(folder, config or {}, resume_at), OSError)

    @property
    def rows(self) -> list[Row]:
        """Rows of metrics.csv, in order."""
        return self._metrics.rows

    @property
    def seed_rows(self) -> list[Row]:
        """Rows of seeds.csv, in order."""
        return self._seeds.rows

    def write(self, row: Row) -> None:
        """Add a row; it must have `env_steps`. The file is whole at any moment."""
        step, scalars = int(row[STEP]), {name: x for name, x in row.items() if name != STEP}
        self._call([self._metrics, *self._loggers], lambda logger: logger.log(step, scalars))

    def write_seeds(self, rows: list[Row]) -> None:
        """Add one row for each agent to seeds.csv."""
        self._call([self._seeds], lambda _: self._seeds.add(rows))

    def pictures(self, step: int, files: Iterable[Path]) -> None:
        """Give loggers the pictures (PNG) and animations (GIF) of a run."""
        for file in files:
            kind = "video" if file.suffix == ".gif" else "figure"
            self._call(
                self._loggers,
                lambda logger, file=file, kind=kind: getattr(logger, kind)(step, file.stem, file),
            )

    def close(self) -> None:
        """Close the loggers; writes what a full disk has held up, if there is room now."""
        self._call([self._metrics, self._seeds, *self._loggers], lambda logger: logger.close())

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(
        self,
        loggers: Sequence[Logger],
        method: Callable[[Logger], None],
        caught: type[Exception] = Exception,
    ) -> None:
        """Call loggers; warn of each problem once until it is gone."""
        for logger in loggers:
            try:
                method(logger)
            except caught as error:
                self._failing.add(id(logger))
                if str(error) not in self._told:
                    self._told.add(str(error))
                    later = ""
                    if isinstance(error, OSError):
                        later = ", and files get what is missing when there is room"
                    warnings.warn(
                        f"the log of the run cannot be written ({type(logger).__name__}): {error}. "
                        f"The run goes on{later}.",
                        RuntimeWarning,
                        stacklevel=3,
                    )
            else:
                self._failing.discard(id(logger))
        if not self._failing:
            self._told.clear()
