"""Where the scalars of a run go: TensorBoard events, metrics.csv and seeds.csv.

All is written by the thread that calls, and no file stays open: what ends a run, leaves nothing
behind. A process that is killed leaves whole tables. Where a disk is full, a warning says so, and
what could not be written is written with what comes later.
"""

from __future__ import annotations

import csv
import io
import math
import os
import socket
import struct
import time
import warnings
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class RunLog:
    """Writes scalars to `metrics.csv`, `seeds.csv` and, as events, to TensorBoard.

    Used as a context manager, it makes a last attempt at the end to write what a full disk has
    held up.

    Args:
        folder: of the run; made if it is not there.
        resume_at: environment steps of the checkpoint that the run goes on from. Rows up to there
            are kept, later ones dropped, from the tables and from TensorBoard. None begins anew.

    Attributes:
        rows: of metrics.csv, one for each interim test.
        seed_rows: of seeds.csv, one for each interim test and agent; empty for one agent.
    """

    def __init__(self, folder: str | Path, resume_at: int | None = None):
        folder = Path(folder)
        self._metrics = _Table(folder / "metrics.csv", resume_at)
        self._seeds = _Table(folder / "seeds.csv", resume_at)
        self._events = _Events(folder / "tensorboard", resume_at)
        self._unsaved: list[_Table | _Events] = [self._events]
        if resume_at is not None:
            self._unsaved += [self._metrics, self._seeds]
        self._warned = False
        self._save()

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
        self.rows.append(row)
        self._events.add(row)
        self._save(self._metrics, self._events)

    def write_seeds(self, rows: list[Row]) -> None:
        """Add one row for each agent to seeds.csv."""
        self.seed_rows.extend(rows)
        self._save(self._seeds)

    def close(self) -> None:
        """Write what a full disk has held up, if there is room by now."""
        self._save()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _save(self, *changed: _Table | _Events) -> None:
        """Save what has changed, and what could not be saved before; warn once where it fails."""
        failed, problem = [], None
        for part in dict.fromkeys([*self._unsaved, *changed]):
            try:
                part.save()
            except OSError as error:
                failed.append(part)
                problem = error
        self._unsaved = failed
        if problem is not None and not self._warned:
            warnings.warn(
                f"the log of the run cannot be written: {problem}. The run goes on, and what is "
                f"missing is written when there is room.",
                RuntimeWarning,
                stacklevel=3,
            )
        self._warned = problem is not None


class _Table:
    """A CSV file of rows that may have different columns, replaced as a whole.

    Lines are kept as text, so that a row is formatted once.
    """

    def __init__(self, path: Path, resume_at: int | None = None):
        self._path = path
        self.rows: list[Row] = []
        self._columns: list[str] = []
        self._lines: list[str] = []
        if resume_at is not None and path.exists():
            with path.open(newline="") as file:
                found = [_read(row) for row in csv.DictReader(file)]
            self.rows = [row for row in found if row.get("env_steps", math.inf) <= resume_at]

    def save(self) -> None:
        """Write the file; without rows there is none."""
        if not self.rows:
            self._path.unlink(missing_ok=True)
            return
        columns = list(dict.fromkeys([*self._columns, *self._new_columns()]))
        if columns != self._columns:
            self._columns, self._lines = columns, []
        for row in self.rows[len(self._lines) :]:
            self._lines.append(_line(row.get(name, "") for name in columns))
        part = self._path.with_name(f".{self._path.name}.part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(_line(columns) + "".join(self._lines), newline="")
            os.replace(part, self._path)
        except OSError:
            part.unlink(missing_ok=True)  # room for others
            raise

    def _new_columns(self) -> list[str]:
        return [name for row in self.rows[len(self._lines) :] for name in row]


def _line(values: Any) -> str:
    """Values as a line of a CSV file."""
    out = io.StringIO()
    csv.writer(out).writerow(x.item() if hasattr(x, "item") else x for x in values)
    return out.getvalue()


def _read(row: dict[str, str]) -> Row:
    """A row as it was written: numbers, and no entry where there is none."""

    def value(text: str) -> Any:
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                pass
        return text

    return {name: value(text) for name, text in row.items() if text}


def _protocols() -> tuple[Any, Any]:
    """TensorBoard's messages, whose classes are made when they are imported."""
    from tensorboardX.proto import event_pb2, summary_pb2

    return event_pb2, summary_pb2


class _Events:
    """A file of TensorBoard events, appended to by the thread that calls.

    The writer of tensorboardX has a thread of its own that dies with the first error, after which
    its queue fills up and blocks; only its formats are used here.
    """

    def __init__(self, folder: Path, resume_at: int | None):
        event_pb2, _ = _protocols()
        # Readers take files in the order of their names, and a run that goes on begins another.
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        self._written = 0  # bytes
        self._waiting: list[bytes] = []
        self._add(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        if resume_at is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(event_pb2.Event(wall_time=time.time(), step=resume_at + 1, session_log=start))

    def add(self, row: Row) -> None:
        """The scalars of a row."""
        event_pb2, summary_pb2 = _protocols()
        now, step = time.time(), int(row["env_steps"])
        for name, x in row.items():
            if name != "env_steps":
                value = summary_pb2.Summary.Value(tag=name, simple_value=_float32(x))
                self._add(
                    event_pb2.Event(
                        wall_time=now, step=step, summary=summary_pb2.Summary(value=[value])
                    )
                )

    def _add(self, event: Any) -> None:
        from tensorboardX.record_writer import masked_crc32c

        data = event.SerializeToString()
        size = struct.pack("<Q", len(data))
        checks = (struct.pack("<I", masked_crc32c(part)) for part in (size, data))
        self._waiting.append(size + next(checks) + data + next(checks))

    def save(self) -> None:
        """Append what waits, after what was written as a whole."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        data = b"".join(self._waiting)
        if not self._path.exists():
            self._written = 0
        with self._path.open("r+b" if self._written else "wb") as file:
            file.truncate(self._written)
            file.seek(self._written)
            file.write(data)
        self._written += len(data)
        self._waiting = []


def _float32(x: Any) -> float:
    """As a float that float32 holds: infinite where it is too large."""
    x = float(x)
    return math.copysign(math.inf, x) if abs(x) > 3.4028234663852886e38 else x
