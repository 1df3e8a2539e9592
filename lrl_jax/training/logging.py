"""Where the scalars of a run go: TensorBoard events and metrics.csv."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Protocol


class Writer(Protocol):
    """What the host loops need of a TensorBoard writer."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object:
        """Write one scalar."""
        ...


class RunLog:
    """Writes one row of scalars at a time to `metrics.csv` and, as events, to TensorBoard."""

    def __init__(self, folder: Path):
        from tensorboardX import SummaryWriter

        self._path = folder / "metrics.csv"
        self._writer: Writer = SummaryWriter(str(folder / "tensorboard"))
        self.rows: list[dict[str, float]] = []

    def write(self, row: dict[str, float]) -> None:
        """Add a row; it must have `env_steps`. The file is whole after every call."""
        self.rows.append(row)
        for name, value in row.items():
            if name != "env_steps":
                self._writer.add_scalar(name, value, int(row["env_steps"]))
        with self._path.open("w", newline="") as file:
            columns = list(dict.fromkeys(name for each in self.rows for name in each))
            table = csv.DictWriter(file, columns, restval="")
            table.writeheader()
            table.writerows(self.rows)

    def close(self) -> None:
        """Flush the events."""
        self._writer.close()  # type: ignore[attr-defined]
