"""Wheels for a machine with an accelerator that cannot fetch packages.

JAX with its accelerator, Flax and chex are taken to be there, with all that they need. The rest of
what lrl_jax needs, and what brax needs besides, is downloaded as two sets of wheels, to be
installed with `--no-deps`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
THERE = ("jax", "flax", "chex")
MOST_MIB = 40
# pip takes a platform's tag as it is: newer glibc does not include older.
PLATFORMS = tuple(
    f"manylinux{tag}_x86_64"
    for tag in ("_2_35", "_2_34", "_2_28", "_2_27", "_2_24", "_2_17", "2014", "2010", "1")
)


def _pip(*options: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")


def _target(python: str, folder: str) -> list[str]:
    platforms = [f"--platform={name}" for name in PLATFORMS]
    only = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
    return [*only, *platforms, f"--{folder}"]


def resolved(python: str, requirements: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Metadata of all packages that pip would install, by canonical name."""
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "report.json"
        options = ["install", "--quiet", "--dry-run", "--ignore-installed", f"--report={report}"]
        _pip(*options, *_target(python, f"target={name}"), *requirements)
        found = json.loads(report.read_text())["install"]
    return {canonicalize_name(x["metadata"]["name"]): x["metadata"] for x in found}


def closure(packages: dict[str, dict[str, Any]], names: Iterable[str], python: str) -> set[str]:
    """The names and all that they need, of those packages."""
    seen: set[str] = set()
    waiting = [str(canonicalize_name(name)) for name in names]
    environment = {"python_version": python, "sys_platform": "linux", "extra": ""}
    while waiting:
        name = waiting.pop()
        if name in seen or name not in packages:
            continue
        seen.add(name)
        for text in packages[name].get("requires_dist", ()):
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate(environment):
                waiting.append(str(canonicalize_name(needed.name)))
    return seen


def requirements(extras: Iterable[str]) -> list[str]:
    """What lrl_jax asks for, with extras; read from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(r for extra in extras for r in optional[extra])]


def download(folder: Path, versions: dict[str, str], python: str) -> None:
    """Fetch wheels into a folder, without what they need."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wanted = [f"{name}=={version}" for name, version in versions.items()]
    _pip("download", "--quiet", "--no-deps", *_target(python, f"dest={folder}"), *wanted)
    wheels = sorted(folder.glob("*.whl"))
    mib = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print(f"{folder}: {mib:.1f} MiB in {len(wheels)} wheels, of at most {MOST_MIB}")
    if mib > MOST_MIB:
        raise SystemExit(f"{folder} is larger than {MOST_MIB} MiB: tell --there what there is.")


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m benchmarks.accelerator.kit`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator.kit", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=Path("accelerator-kit"))
    parser.add_argument("--python", default="3.12", help="version of Python there")
    parser.add_argument("--there", nargs="*", default=list(THERE), help="packages that there are")
    parser.add_argument("--extras", nargs="*", default=["brax"])
    args = parser.parse_args(argv)
    packages = resolved(args.python, requirements(args.extras))
    done = closure(packages, args.there, args.python)
    # A separate set for each extra: the first is enough for all but physics.
    for name, extras in [("core", []), *((extra, [extra]) for extra in args.extras)]:
        needed = (Requirement(text).name for text in requirements(extras))
        found = closure(packages, needed, args.python) - done
        done |= found
        download(args.out / name, {k: packages[k]["version"] for k in sorted(found)}, args.python)
    site = args.out / "site"
    print(
        f"\nThere, in a copy of the repository:\n"
        f"python3 -m pip install --quiet --no-index --no-deps --upgrade --target {site} "
        f"{args.out}/*/*.whl && PYTHONPATH=$PWD/{site}:. python3 -m benchmarks.accelerator"
    )


if __name__ == "__main__":
    main()
