"""Where the scalars of a run go: TensorBoard events, metrics.csv and seeds.csv."""

from __future__ import annotations

import csv
from pathlib import Path


class RunLog:
    """Writes scalars to `metrics.csv`, `seeds.csv` and, as events, to TensorBoard.

    Attributes:
        rows: of metrics.csv, one for each interim test.
        seed_rows: of seeds.csv, one for each interim test and agent; empty for one agent.
    """

    def __init__(self, folder: Path):
        from tensorboardX import SummaryWriter

        self._folder = folder
        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self.rows: list[dict[str, float]] = []
        self.seed_rows: list[dict[str, float]] = []

    def write(self, row: dict[str, float]) -> None:
        """Add a row; it must have `env_steps`. The file is whole after every call."""
        self.rows.append(row)
        for name, value in row.items():
            if name != "env_steps":
                self._writer.add_scalar(name, value, int(row["env_steps"]))
        _write_table(self._folder / "metrics.csv", self.rows)

    def write_seeds(self, rows: list[dict[str, float]]) -> None:
        """Add one row for each agent to seeds.csv."""
        self.seed_rows += rows
        _write_table(self._folder / "seeds.csv", self.seed_rows)

    def close(self) -> None:
        """Flush the events."""
        self._writer.close()


def _write_table(path: Path, rows: list[dict[str, float]]) -> None:
    with path.open("w", newline="") as file:
        columns = list(dict.fromkeys(name for each in rows for name in each))
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(rows)
