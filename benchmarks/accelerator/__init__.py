"""What an accelerator has to show, in parts of at most four minutes each on an H100.

`python -m benchmarks.accelerator` runs what is missing of parts 1 to 3, the most telling rows
first. It writes FOLDER/accelerator.json after every row and keeps what was compiled in
FOLDER/cache, so it may be killed at any time and goes on where it stopped. Seconds of compilation
stand apart.

- Part 1: ceilings of the device; rollouts against a bare scan; kernels of a tick; SPlaTES in
  Maze2D-Medium up to a success of 0.9.
- Part 2: seeds side by side; updates of SAC, PPO and TD-MPC2; plans of MPPI.
- Part 3: physics (extras brax and playground); agreement with the CPU; the semantics' tests.
- With `--minutes 30`, part 4: seconds to a success of 0.9 in Maze2D-Large.

`--rehearse` runs all of it in sizes of seconds, on any device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from benchmarks import Row


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much each row does."""

    product: int = 8192  # rows and columns of the matrices of the ceilings
    copied_mb: int = 1024
    launches: int = 2000
    instances: tuple[int, ...] = (65_536, 4_096, 256)
    ticks: int = 200
    planned_ticks: int = 20
    most_steps: int = 150_000  # of a run up to a success
    test_interval: int = 10_000
    seeds: tuple[int, ...] = (1, 16, 64, 256)
    chunk_steps: int = 10_000
    updates: int = 100
    batches: tuple[int, ...] = (256, 4096)
    update_seeds: int = 16
    plans: tuple[int, ...] = (1, 64, 512)
    physics_instances: int = 4096
    physics_ticks: int = 100
    repeats: int = 3
    small: bool = False  # networks and searches of a rehearsal
    tests: tuple[str, ...] = ("tests/test_semantics.py", "tests/test_maze2d.py")


REHEARSAL = Sizes(
    product=128,
    copied_mb=1,
    launches=20,
    instances=(64,),
    ticks=20,
    planned_ticks=4,
    most_steps=1280,
    test_interval=640,
    seeds=(2,),
    chunk_steps=640,
    updates=2,
    batches=(16,),
    update_seeds=2,
    plans=(2,),
    physics_instances=4,
    physics_ticks=4,
    repeats=1,
    small=True,
    tests=(),
)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a job found: rows of a table, and facts that are not timings."""

    rows: tuple[Row, ...] = ()
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Job:
    """One entry of the results.

    Attributes:
        name: key of the entry.
        part: 1 to 4.
        run: does the work.
    """

    name: str
    part: int
    run: Callable[[Sizes], Found]
