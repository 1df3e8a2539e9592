"""Loggers that write files: a table, and TensorBoard events.

All is written by the thread that calls, and no file stays open: what ends a run, leaves nothing
behind. A process that is killed leaves whole files. What a full disk has held up is written with
what comes later.
"""

from __future__ import annotations

import csv
import io
import math
import os
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lrl_jax.loggers.base import Logger, plain

Row = dict[str, Any]
STEP = "env_steps"


class CSV(Logger):
    """A table with one row for each step, replaced as a whole; rows may have different columns.

    Args:
        path: of the file; `metrics.csv` in the folder of the run if None.

    Attributes:
        rows: all rows, in order; each has `env_steps`.
    """

    def __init__(self, path: str | Path | None = None):
        self._path = None if path is None else Path(path)
        self.rows: list[Row] = []
        self._columns: list[str] = []
        self._lines: list[str] = []  # of the rows, so that each is formatted once
        self._unsaved = False

    def begin(self, run: Path, config: Mapping[str, Any], resume_at: int | None) -> None:
        """Begin a new file, or keep the rows up to `resume_at` of the file that is there."""
        if self._path is None:
            self._path = Path(run) / "metrics.csv"
        if resume_at is None:
            return
        if self._path.exists():
            with self._path.open(newline="") as file:
                found = [_read(row) for row in csv.DictReader(file)]
            self.rows = [row for row in found if row.get(STEP, math.inf) <= resume_at]
        self._save()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add a row, or to the last one where that is of the same step."""
        if self.rows and self.rows[-1].get(STEP) == step:
            self.rows[-1].update(scalars)
            del self._lines[len(self.rows) - 1 :]
            self._save()
        else:
            self.add([{STEP: step, **scalars}])

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows; several may be of one step."""
        self.rows.extend(rows)
        self._save()

    def close(self) -> None:
        """Write what a full disk has held up, if there is room now."""
        if self._unsaved:
            self._save()

    def _save(self) -> None:
        """Write the file; without rows there is none."""
        if self._path is None:
            raise ValueError("the table has no file: give it one, CSV(path).")
        self._unsaved = True
        if not self.rows:
            self._path.unlink(missing_ok=True)
            self._unsaved = False
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
        self._unsaved = False

    def _new_columns(self) -> list[str]:
        return [name for row in self.rows[len(self._lines) :] for name in row]


def _line(values: Any) -> str:
    """Values as a line of a CSV file."""
    out = io.StringIO()
    csv.writer(out).writerow(plain(x) for x in values)
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


def read_table(path: str | Path) -> list[Row]:
    """The rows of a file that `CSV` wrote; none if there is no file."""
    if not Path(path).is_file():
        return []
    with Path(path).open(newline="") as file:
        return [_read(row) for row in csv.DictReader(file)]


def _protocols() -> tuple[Any, Any]:
    """TensorBoard's messages, whose classes are made when they are imported."""
    from tensorboardX.proto import event_pb2, summary_pb2

    return event_pb2, summary_pb2


class TensorBoard(Logger):
    """Scalars, figures and videos as TensorBoard events, appended to one file.

    The writer of tensorboardX has a thread that dies with the first error, after which
    its queue fills up and blocks; only its formats are used here.

    Args:
        folder: of the files; `tensorboard` in the folder of the run if None.
    """

    def __init__(self, folder: str | Path | None = None):
        self._folder = None if folder is None else Path(folder)
        self._path: Path | None = None
        self._written = 0  # bytes
        self._waiting: list[bytes] = []

    def begin(self, run: Path, config: Mapping[str, Any], resume_at: int | None) -> None:
        """Begin a file. Readers drop what other files there say of later steps."""
        if self._folder is None:
            self._folder = Path(run) / "tensorboard"
        self._begin(resume_at)
        self._save()

    def _begin(self, resume_at: int | None) -> None:
        if self._folder is None:
            raise ValueError("the events have no folder: give them one, TensorBoard(folder).")
        event_pb2, _ = _protocols()
        # Readers take files in the order of their names, and a resumed run begins another.
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path = self._folder / name
        self._add(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        if resume_at is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(event_pb2.Event(wall_time=time.time(), step=resume_at + 1, session_log=start))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append an event for each scalar."""
        self._values(step, [{"tag": k, "simple_value": _float32(x)} for k, x in scalars.items()])

    def figure(self, step: int, name: str, file: Path) -> None:
        """Append a picture."""
        import imageio.v3 as imageio

        *_, height, width, n_channels = imageio.improps(file).shape
        _, summary_pb2 = _protocols()
        image = summary_pb2.Summary.Image(
            height=height,
            width=width,
            colorspace=n_channels,
            encoded_image_string=Path(file).read_bytes(),
        )
        self._values(step, [{"tag": name, "image": image}])

    def video(self, step: int, name: str, file: Path) -> None:
        """Append an animation, which TensorBoard plays among the images."""
        self.figure(step, name, file)

    def close(self) -> None:
        """Write what a full disk has held up, if there is room now."""
        if self._waiting:
            self._save()

    def _values(self, step: int, values: list[dict[str, Any]]) -> None:
        event_pb2, summary_pb2 = _protocols()
        if self._path is None:
            self._begin(None)
        for value in values:
            summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(**value)])
            self._add(event_pb2.Event(wall_time=time.time(), step=int(step), summary=summary))
        self._save()

    def _add(self, event: Any) -> None:
        from tensorboardX.record_writer import masked_crc32c

        data = event.SerializeToString()
        size = struct.pack("<Q", len(data))
        checks = (struct.pack("<I", masked_crc32c(part)) for part in (size, data))
        self._waiting.append(size + next(checks) + data + next(checks))

    def _save(self) -> None:
        """Append what waits, after what was written as a whole."""
        assert self._path is not None
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
