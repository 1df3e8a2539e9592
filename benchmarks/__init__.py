"""Benchmarks: `python -m benchmarks --help`.

Each module has `run(quick)`, which returns rows. What is compared is timed in one process with
interleaved repeats; `quick` takes fewer repeats and smaller sizes.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from lrl_jax.benchmark import Timing, device_name
from lrl_jax.tables import aligned

PACKAGES = ("lrl_jax", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a benchmark's table.

    Attributes:
        case: what was timed.
        timing: how long a call took.
        work: units of work of a call, for `rate`.
        unit: what `work` counts.
        ratio: against the case it is compared with, see `against`.
        against: name of that case, and which way the ratio is taken.
        bar: the ratio that is aimed at; reached if the ratio is at most (`at_most`), or at least,
            as large.
        note: what a reader has to know.
    """

    case: str
    timing: Timing
    work: float = 1.0
    unit: str = "calls"
    ratio: float | None = None
    against: str = ""
    bar: float | None = None
    at_most: bool = True
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bar is reached; None without one."""
        if self.bar is None or self.ratio is None:
            return None
        return self.ratio <= self.bar if self.at_most else self.ratio >= self.bar

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        data = dataclasses.asdict(self)
        rate = self.timing.rate(self.work)
        return {**data, "rate": rate, "met": self.met}


def slower(timings: dict[str, Timing], name: str, bare: str) -> float:
    """How many times as long as `bare` the case `name` takes.

    The median over repeats of the ratio within a repeat: neighbours in time met the same machine.
    """
    pairs = zip(timings[name].repeats, timings[bare].repeats, strict=True)
    ratios = sorted(a / b for a, b in pairs)
    middle = len(ratios) // 2
    return ratios[middle] if len(ratios) % 2 else 0.5 * (ratios[middle - 1] + ratios[middle])


def table(rows: Sequence[Row]) -> str:
    """Rows as text with aligned columns."""
    lines = [("case", "time of a call", "rate", "compile", "ratio", "bar", "")]
    for row in rows:
        sign = "<=" if row.at_most else ">="
        lines.append(
            (
                row.case,
                _time(row.timing.median),
                "" if row.unit == "calls" else f"{row.timing.rate(row.work):,.0f} {row.unit}/s",
                f"{row.timing.compile_seconds:.1f} s",
                "" if row.ratio is None else f"{row.ratio:.2f}",
                "" if row.bar is None else f"{sign} {row.bar:g}",
                {None: "", True: "ok", False: "missed"}[row.met],
            )
        )
    notes = dict.fromkeys(row.note for row in rows if row.note)
    return "\n".join([aligned(lines), *notes])


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3f} ms"


def about() -> dict[str, Any]:
    """Where and with what a benchmark runs."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device_name(),
        "cpu": _cpu(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "backend": jax.default_backend(),
        "command": _command(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _command() -> str:
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if main is None or not main.name:
        return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return shlex.join(["python", "-m", main.name.removesuffix(".__main__"), *sys.argv[1:]])


def write_json(path: Path, data: Any) -> None:
    """Write a file that is whole at any moment: readers find the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=1) + "\n")
    part.replace(path)
