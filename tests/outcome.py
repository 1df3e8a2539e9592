"""Plugin of pytest's: `--outcome FILE` writes what came of a run, for `make test-extras`."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
from pathlib import Path

PACKAGES = (
    "lrl_jax", "jax", "gymnasium", "gymnax", "brax", "playground", "xminigrid", "craftax", "mujoco",
    "gymnasium-robotics", "minigrid", "box2d", "envpool", "ray",
)  # fmt: skip

BAD = ("failed", "error")


def pytest_addoption(parser):
    parser.addoption("--outcome", type=Path, help="JSON file of counts, skips and versions")


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def pytest_terminal_summary(terminalreporter, config):
    path = config.getoption("--outcome")
    if path is None:
        return
    stats = terminalreporter.stats
    out = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "counts": {kind: len(stats.get(kind, ())) for kind in ("passed", *BAD, "skipped")},
        "failed": sorted(report.nodeid for kind in BAD for report in stats.get(kind, ())),
        "skipped": {report.nodeid: str(report.longrepr[-1]) for report in stats.get("skipped", ())},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(out, indent=1) + "\n")
