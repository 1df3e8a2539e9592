"""Settings of a training run, plain and printable."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

from lrl_jax.devices import check_divides
from lrl_jax.settings import check_int, put_checked
from lrl_jax.training.agents import Agent, PlannerAgent


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What is trained, where, and for how long.

    Attributes:
        agent: the levels.
        env: id of the environment, see `lrl_jax.make`.
        n_env_instances: instances that step together.
        total_steps: environment steps of an agent, all its instances together.
        round_ticks: ticks between updates; the updates owed are made after each round.
        test_interval: environment steps between interim tests.
        test_episodes: episodes of an interim test.
        final_test_episodes: episodes of the test at the end.
        checkpoint_interval: interim tests between checkpoints; 0 for one at the end only.
        seed: of all random streams.
        seeds: agents trained side by side in one vmapped call, with `seed`, `seed + 1`, ...
        devices: devices of all processes that share the work: agents where they divide `seeds`
            evenly, else instances, with their replay.
        workers: processes of a `CWorkerSet` that collect (extra "distributed"), each with its share
            of the instances; 0 for none.
    """

    agent: Agent = dataclasses.field(default_factory=PlannerAgent)
    env: str = "Maze2D-Medium-v0"
    n_env_instances: int = 64
    total_steps: int = 200_000
    round_ticks: int = 10
    test_interval: int = 25_000
    test_episodes: int = 32
    final_test_episodes: int = 256
    checkpoint_interval: int = 0
    seed: int = 0
    seeds: int = 1
    devices: int = 1
    workers: int = 0

    def __post_init__(self):
        sizes = ("n_env_instances", "total_steps", "round_ticks", "seeds", "devices")
        tests = ("test_interval", "test_episodes", "final_test_episodes")
        put_checked(self, check_int, (*sizes, *tests), 1)
        put_checked(self, check_int, ("seed", "checkpoint_interval", "workers"), 0)
        if self.workers and (self.devices > 1 or self.seeds > 1):
            raise ValueError(
                f"workers={self.workers} with devices={self.devices} and seeds={self.seeds}: "
                f"workers send to one learner on one device."
            )
        if self.workers and self.n_env_instances % self.workers:
            raise ValueError(
                f"n_env_instances={self.n_env_instances} cannot be shared evenly by "
                f"workers={self.workers}: use a multiple of {self.workers}."
            )
        if not self.seeds_are_split:
            check_divides(self.n_env_instances, self.devices)
        if self.total_steps < self.n_env_instances * self.round_ticks:
            raise ValueError(
                f"total_steps={self.total_steps} is less than one round of {self.round_ticks} "
                f"ticks of {self.n_env_instances} instances: raise it to "
                f"{self.n_env_instances * self.round_ticks} or more."
            )

    @property
    def seeds_are_split(self) -> bool:
        """Whether devices share the agents, not each agent's instances."""
        return self.seeds > 1 and self.seeds % self.devices == 0

    @property
    def agent_seeds(self) -> tuple[int, ...]:
        """The seed of each agent."""
        return tuple(range(self.seed, self.seed + self.seeds))

    @property
    def round_steps(self) -> int:
        """Environment steps of a round."""
        return self.n_env_instances * self.round_ticks

    @property
    def n_rounds(self) -> int:
        """Whole rounds that fit into total_steps."""
        return self.total_steps // self.round_steps

    @property
    def rounds_per_chunk(self) -> int:
        """Rounds between interim tests."""
        return self.n_rounds // self.n_chunks

    @property
    def n_chunks(self) -> int:
        """Interim tests of a run, about `test_interval` apart and evenly spaced.

        total_steps is never exceeded, and missed by less than a round for each test and one more.
        """
        return max(1, round(self.n_rounds / max(1, self.test_interval // self.round_steps)))


def to_json(config: TrainConfig) -> str:
    """The config as text; the agent's kind is written beside its settings."""
    data = dataclasses.asdict(config)
    data["agent"] = {"kind": type(config.agent).__name__, **data["agent"]}
    return json.dumps(data, indent=2)


def from_json(text: str) -> TrainConfig:
    """Undo `to_json`; ValueError for settings that this version does not know."""
    data: dict[str, Any] = json.loads(text)
    settings = dict(data.pop("agent", {}))
    kinds: dict[str, Any] = {kind.__name__: kind for kind in get_args(Agent)}
    kind = settings.pop("kind", None)
    if kind not in kinds:
        raise ValueError(f"unknown agent {kind!r}: this version knows {sorted(kinds)}.")
    try:
        return TrainConfig(agent=kinds[kind](**settings), **data)
    except TypeError as error:
        raise ValueError(f"the config has settings this version does not know: {error}") from None


def load_config(run: Path) -> TrainConfig:
    """Read the config of a run folder."""
    path = Path(run) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} is no run folder: it has no config.json.")
    return from_json(path.read_text())
