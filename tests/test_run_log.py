"""The log of a run: whole files, full disks, and going on."""

import csv
import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from lrl_jax.training.logging import RunLog


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def events(folder: Path) -> list[Event]:
    """All events of whole records, files in the order of their names."""
    found = []
    for file in sorted((folder / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:  # length (8 bytes), checksum (4), event, checksum (4)
            size = int.from_bytes(data[:8], "little")
            assert len(data) >= 16 + size
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    return [(v.tag, e.step, v.simple_value) for e in events(folder) for v in e.summary.value]


def row(i: int, **more: float) -> dict[str, float]:
    return {"env_steps": 100 * i, "loss": 1 / (i + 3), **more}


def test_rows_and_events_are_there_after_every_call(tmp_path):
    with RunLog(tmp_path) as log:
        for i in range(3):
            log.write(row(i, late=np.float32(i)) if i else row(i))
            log.write_seeds([row(i, agent=j) for j in range(2)])
            assert [int(r["env_steps"]) for r in table(tmp_path / "metrics.csv")] == [
                100 * j for j in range(i + 1)
            ]
            assert len(table(tmp_path / "seeds.csv")) == 2 * (i + 1)
    metrics = table(tmp_path / "metrics.csv")
    assert list(metrics[0]) == ["env_steps", "loss", "late"]
    assert metrics[0]["late"] == "" and metrics[2] == {
        "env_steps": "200",
        "loss": "0.2",
        "late": "2.0",
    }
    assert scalars(tmp_path)[-2:] == [("loss", 200, pytest.approx(0.2)), ("late", 200, 2.0)]


class FullDisk:
    """Lets writes fail: files take what is in the limit of this process."""

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
        signal.signal(signal.SIGXFSZ, self.handler)


def test_a_full_disk_warns_once_and_loses_nothing(tmp_path):
    with RunLog(tmp_path) as log:
        log.write(row(0))
        with FullDisk(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for i in range(1, 60):
                log.write(row(i))
        (warning,) = caught
        assert "cannot be written" in str(warning.message)
        assert len(table(tmp_path / "metrics.csv")) < 60
        log.write(row(60, late=1.0))
    assert [float(r["loss"]) for r in table(tmp_path / "metrics.csv")] == [
        1 / (i + 3) for i in range(61)
    ]
    assert [step for tag, step, _ in scalars(tmp_path) if tag == "loss"] == [
        100 * i for i in range(61)
    ]
    assert {p.name for p in tmp_path.iterdir()} == {"metrics.csv", "tensorboard"}


def test_what_was_held_up_is_written_at_the_end_whatever_ends_the_run(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(KeyError), RunLog(tmp_path) as log:
        with monkeypatch.context() as patch, pytest.warns(RuntimeWarning, match="No space left"):
            patch.setattr(os, "replace", full)
            log.write(row(0))
        assert not (tmp_path / "metrics.csv").exists()
        raise KeyError
    assert len(table(tmp_path / "metrics.csv")) == 1


def test_nothing_stays_open(tmp_path):
    def open_here():
        links = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return [link for link in links if link.startswith(str(tmp_path))]

    threads = threading.active_count()
    log = RunLog(tmp_path)
    log.write(row(0))
    assert not open_here() and threading.active_count() == threads


WRITES = """
import sys
from lrl_jax.training.logging import RunLog

log = RunLog(sys.argv[1])
for i in range(100_000):
    log.write({"env_steps": i, **{f"m{j}": 1.0 / (i + j + 1) for j in range(20)}})
    if i == 300:
        print("ready", flush=True)
"""


@pytest.fixture(scope="module")
def writing(tmp_path_factory):
    """A process that writes rows without end, and its folder."""
    folder = tmp_path_factory.mktemp("run")
    command = [sys.executable, "-c", WRITES, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process, folder
        finally:
            process.kill()


def test_a_table_is_whole_at_any_moment(writing):
    process, folder = writing
    for moment in range(200):  # as a kill at that moment would leave it
        if moment == 199:
            process.kill()
            process.wait()
        text = (folder / "metrics.csv").read_text()
        header, *lines = text.splitlines()
        assert text.endswith("\n") and len(lines) >= 300
        assert all(line.count(",") == header.count(",") for line in lines[-2:])
        assert [line.split(",", 1)[0] for line in lines] == [str(i) for i in range(len(lines))]


def test_a_run_that_goes_on_has_the_rows_of_an_unbroken_one(tmp_path):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"

    def play(folder, start, stop, resume_at=None):
        with RunLog(folder, resume_at) as log:
            for i in range(start, stop):
                log.write_seeds([row(i, agent=j) for j in range(2)])
                log.write(row(i, **({"late": i * 0.1, "x": np.inf} if i > 3 else {"first": i})))
        return log

    whole = play(unbroken, 0, 8)
    play(broken, 0, 6)
    went_on = play(broken, 3, 8, resume_at=250)
    for name in ("metrics.csv", "seeds.csv"):
        assert (broken / name).read_text() == (unbroken / name).read_text()
    assert went_on.rows == whole.rows and went_on.seed_rows == whole.seed_rows
    shown = {}
    for event in events(broken):  # as TensorBoard reads them
        if event.session_log.status == SessionLog.START:
            shown = {k: v for k, v in shown.items() if k[1] < event.step}
        shown |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
    assert list(shown.items()) == [((tag, step), x) for tag, step, x in scalars(unbroken)]


def test_a_run_that_goes_on_before_its_first_row_begins_anew(tmp_path):
    RunLog(tmp_path).write(row(1))
    log = RunLog(tmp_path, resume_at=0)
    assert log.rows == [] and not (tmp_path / "metrics.csv").exists()
