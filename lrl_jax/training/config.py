"""Settings of a training run, plain and printable."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lrl_jax.devices import check_divides
from lrl_jax.levels.base import as_level
from lrl_jax.loggers import check_names
from lrl_jax.schedules import is_number
from lrl_jax.setting_trees import full_path, get, resolve, with_settings
from lrl_jax.settings import (
    check_choice,
    check_flag,
    check_float,
    check_int,
    optional,
    put_checked,
)
from lrl_jax.training.serial import classes_of, decode, encode, known

CONFIG = "config.json"
#: Of config.json; 1 named an agent instead of its levels.
FORMAT = 2


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What is trained, where, and for how long.

    Attributes:
        levels: frozen dataclasses, the highest first: the library's or your own.
        env: an id, see `lrl_jax.make`, or an environment.
        env_settings: keyword arguments of `lrl_jax.make` for an id: a mapping.
        env_params: parameters of the environment: the object, or a mapping of the fields that
            differ from its defaults.
        obs_maps: what each level sees, one for each level, None for all of the observation; see
            `lrl_jax.obs_maps`.
        signals: see `Hierarchy`.
        frozen: indices of levels that act as in evaluation and learn nothing.
        sweep: values of settings that are leaves, by path: `{"levels.0.learning_rate": (1e-4,
            1e-3)}`. Each combination is trained with each seed, all in one vmapped call.
        n_env_instances: instances that step together.
        total_steps: environment steps of an agent, summed over its instances.
        round_ticks: ticks between updates; the updates owed are made after each round.
        test_interval: environment steps between interim tests.
        test_episodes: episodes of an interim test.
        final_test_episodes: episodes of the test at the end.
        test_max_steps: ticks after which a test gives an episode up; the environment's own limit
            if None.
        checkpoint_interval: interim tests between checkpoints; 0 for one at the end only.
        max_to_keep: checkpoints kept in addition to the one at the end.
        save_best: whether `checkpoints/best` is kept too, of the interim test with the highest
            success, then return; of return alone if the environment reports no success.
        stop_at: the run ends after the first interim test whose success, or return where the
            environment reports no success, reaches this; None for never.
        loggers: names of where scalars and pictures go, besides `metrics.csv`: "tensorboard",
            "wandb", "trackio", "mlflow", of the last three also "name:project".
        nan: what rewards, observations and losses that are not finite do: "raise" ends the run,
            whose last checkpoint is from before; "allow" does not look.
        chunk_rounds: rounds between interim tests. None spaces them evenly, about test_interval
            apart; the first start of a run puts the number in.
        seed: of all random streams.
        seeds: agents trained side by side in one vmapped call, with `seed`, `seed + 1`, ...
        devices: devices of all processes that share the work: agents where they divide their
            number evenly, else instances, with their replay.
        workers: processes of a `CWorkerSet` that collect (extra "distributed"), each with its share
            of the instances; 0 for none.
    """

    levels: tuple[Any, ...]
    env: Any = "Maze2D-Medium-v0"
    env_settings: Any = ()
    env_params: Any = ()
    obs_maps: tuple[Any, ...] | None = None
    signals: tuple[str, ...] = ()
    frozen: tuple[int, ...] = ()
    sweep: Any = ()
    n_env_instances: int = 64
    total_steps: int = 200_000
    round_ticks: int = 10
    test_interval: int = 25_000
    test_episodes: int = 32
    final_test_episodes: int = 256
    test_max_steps: int | None = None
    checkpoint_interval: int = 1
    max_to_keep: int = 2
    save_best: bool = False
    stop_at: float | None = None
    loggers: tuple[str, ...] = ("tensorboard",)
    nan: str = "raise"
    chunk_rounds: int | None = None
    seed: int = 0
    seeds: int = 1
    devices: int = 1
    workers: int = 0

    def __post_init__(self):
        sizes = ("n_env_instances", "total_steps", "round_ticks", "seeds", "devices")
        tests = ("test_interval", "test_episodes", "final_test_episodes", "max_to_keep")
        put_checked(self, check_int, (*sizes, *tests), 1)
        put_checked(self, check_int, ("seed", "checkpoint_interval", "workers"), 0)
        put_checked(self, optional(check_int), ("test_max_steps", "chunk_rounds"), 1)
        check_choice("nan", self.nan, ("raise", "allow"))
        put_checked(self, check_flag, ("save_best",))
        put_checked(self, optional(check_float), ("stop_at",))
        object.__setattr__(self, "loggers", check_names(self.loggers))
        self._check_levels()
        self._check_env()
        object.__setattr__(self, "sweep", self._checked_sweep())
        self._check_shares()
        if self.total_steps < self.round_steps:
            raise ValueError(
                f"total_steps={self.total_steps} is less than one round of {self.round_ticks} "
                f"ticks of {self.n_env_instances} instances: raise it to {self.round_steps} or "
                f"more."
            )

    def _check_levels(self) -> None:
        if isinstance(self.levels, str) or not isinstance(self.levels, list | tuple):
            raise TypeError(f"levels must be a tuple of levels, got {self.levels!r}.")
        if not self.levels:
            raise ValueError("levels is empty: give at least one level, the highest first.")
        object.__setattr__(self, "levels", tuple(self.levels))
        for i, level in enumerate(self.levels):
            try:
                as_level(level)
            except TypeError as error:
                raise TypeError(f"levels[{i}]: {error}") from None
        for name in ("signals", "frozen"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, list | tuple):
                raise TypeError(f"{name} must be a tuple, got {value!r}.")
            object.__setattr__(self, name, tuple(value))
        if self.obs_maps is not None:
            if not isinstance(self.obs_maps, list | tuple):
                raise TypeError(f"obs_maps must be a tuple, one for each level: {self.obs_maps!r}.")
            object.__setattr__(self, "obs_maps", tuple(self.obs_maps))
            if len(self.obs_maps) != len(self.levels):
                raise ValueError(
                    f"obs_maps has {len(self.obs_maps)} entries for {len(self.levels)} levels: "
                    f"give None for a level that sees all."
                )

    def _check_env(self) -> None:
        for name in ("env_settings", "env_params"):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, tuple(sorted(value.items())))
            elif name == "env_settings" and not _is_pairs(value):
                raise TypeError(f"env_settings must be a mapping of names to values: {value!r}.")
        params = self.env_params
        if params is None:
            object.__setattr__(self, "env_params", ())
        elif not _is_pairs(params) and not _is_record(params):
            raise TypeError(
                f"env_params must be parameters of the environment, or a mapping of the fields "
                f"that differ from the defaults, got {params!r}."
            )
        if not isinstance(self.env, str) and self.env_settings:
            raise ValueError(
                f"env_settings={dict(self.env_settings)} are for an environment's id, but env is a "
                f"{type(self.env).__name__}: make it with these settings."
            )
        if not isinstance(self.env, str) and not callable(getattr(self.env, "reset", None)):
            raise TypeError(f"env must be an id or an environment, got {self.env!r}.")

    def _checked_sweep(self) -> tuple[tuple[str, tuple[Any, ...]], ...]:
        given = self.sweep
        if not isinstance(given, Mapping) and not _is_pairs(given):
            raise TypeError(f"sweep must map paths of settings to values, got {given!r}.")
        result = []
        for path, values in dict(given).items():
            path = full_path(self, path)
            if not path.startswith("levels."):
                raise ValueError(f"sweep of {path!r}: only settings of levels can be swept.")
            present = get(self, path)
            if not is_number(present):
                raise ValueError(
                    f"sweep of {path!r}: numbers can be swept, it is {present!r}. Give it a number "
                    f"in the config first."
                )
            if isinstance(values, str) or not isinstance(values, Iterable):
                raise TypeError(f"sweep of {path!r} must be a list of values, got {values!r}.")
            values = tuple(values)
            odd = [x for x in values if not is_number(x)]
            if odd or not values:
                raise ValueError(f"sweep of {path!r} must be at least one number, got {values}.")
            result.append((path, tuple(float(x) for x in values)))
        return tuple(result)

    def _check_shares(self) -> None:
        """Refuse what workers and devices cannot share."""
        if self.workers and (self.devices > 1 or self.n_agents > 1):
            raise ValueError(
                f"workers={self.workers} with devices={self.devices} and {self.n_agents} agents: "
                f"workers send to one process, which learns on one device."
            )
        if self.workers and self.n_env_instances % self.workers:
            raise ValueError(
                f"n_env_instances={self.n_env_instances} cannot be shared evenly by "
                f"workers={self.workers}: use a multiple of {self.workers}."
            )
        if not self.seeds_are_split:
            check_divides(self.n_env_instances, self.devices)

    # --------------------------------------------------------------- agents

    @property
    def combinations(self) -> tuple[dict[str, float], ...]:
        """The swept settings of each combination; one empty one without a sweep."""
        paths = [path for path, _ in self.sweep]
        return tuple(
            dict(zip(paths, values, strict=True))
            for values in itertools.product(*(values for _, values in self.sweep))
        )

    @property
    def n_agents(self) -> int:
        """Agents trained side by side: each combination of the sweep with each seed."""
        return self.seeds * math.prod(len(values) for _, values in self.sweep)

    @property
    def seeds_are_split(self) -> bool:
        """Whether devices share the agents, not each agent's instances."""
        return self.n_agents > 1 and self.n_agents % self.devices == 0

    @property
    def agent_seeds(self) -> tuple[int, ...]:
        """The seed of each agent."""
        seeds = tuple(range(self.seed, self.seed + self.seeds))
        return seeds * len(self.combinations)

    @property
    def agent_settings(self) -> tuple[dict[str, float], ...]:
        """The swept settings of each agent."""
        return tuple(each for each in self.combinations for _ in range(self.seeds))

    def of_combination(self, settings: Mapping[str, float]) -> TrainConfig:
        """The config of one combination of the sweep, with the same seeds."""
        return with_settings(dataclasses.replace(self, sweep=()), settings)

    # --------------------------------------------------------------- length

    def resolved(self) -> TrainConfig:
        """With numbers of environment steps instead of fractions of the run."""
        config = dataclasses.replace(self, levels=resolve(self.levels, self.total_steps))
        if config.chunk_rounds is None:
            tests = max(1, self.test_interval // self.round_steps)
            rounds = self.n_rounds // max(1, round(self.n_rounds / tests))
            config = dataclasses.replace(config, chunk_rounds=rounds)
        return config

    @property
    def name(self) -> str:
        """Name of the environment."""
        return self.env if isinstance(self.env, str) else type(self.env).__name__

    @property
    def round_steps(self) -> int:
        """Environment steps of a round."""
        return self.n_env_instances * self.round_ticks

    @property
    def n_rounds(self) -> int:
        """Whole rounds that fit into total_steps."""
        return self.total_steps // self.round_steps

    @functools.cached_property
    def chunks(self) -> tuple[int, ...]:
        """Rounds before each interim test.

        total_steps is never exceeded, and missed by less than a round for each test and one more.
        """
        size = self.resolved().chunk_rounds if self.chunk_rounds is None else self.chunk_rounds
        assert size is not None
        n, rest = divmod(self.n_rounds, size)
        return (size,) * n + ((rest,) if rest > n else ())

    @property
    def n_chunks(self) -> int:
        """Interim tests of a run."""
        return len(self.chunks)


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _is_pairs(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], str) for x in value
    )


# ------------------------------------------------------------------------- files


def to_json(config: TrainConfig) -> str:
    """The config as text."""
    from lrl_jax import __version__

    fields = {f.name: _encoded(f.name, getattr(config, f.name)) for f in dataclasses.fields(config)}
    return json.dumps({"format": FORMAT, "version": __version__, "config": fields}, indent=2)


def _encoded(name: str, value: Any) -> Any:
    if name == "env" and not isinstance(value, str | tuple) and not dataclasses.is_dataclass(value):
        return {"object": type(value).__qualname__, "plain": _is_plain(value)}
    if name == "env_params" and not isinstance(value, tuple):
        fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        return encode(tuple(sorted((f.name, getattr(value, f.name)) for f in fields)))
    return encode(value)


def _is_plain(env: Any) -> bool:
    """Whether an environment is what its class makes without arguments."""
    try:
        return bool(vars(env) == vars(type(env)()))
    except Exception:  # its class needs arguments, or what it holds cannot be compared
        return False


def from_json(text: str, classes: Iterable[Any] = (), env: Any = None) -> TrainConfig:
    """Undo `to_json`.

    Args:
        text: the JSON.
        classes: your own classes that it names, if they are not registered.
        env: instead of an environment that was an object.

    Raises:
        ValueError: for settings, classes or an environment that are not known here.
    """
    data: dict[str, Any] = json.loads(text)
    if "agent" in data:
        raise ValueError(
            "the run was made by lrl_jax up to commit b770d6f, whose configs named an agent in "
            "place of its levels: load it with that version, or train again."
        )
    if data.get("format") != FORMAT:
        raise ValueError(
            f"the run's config has format {data.get('format')}, this version reads {FORMAT}: it "
            f"was written by lrl_jax {data.get('version')}, install that one."
        )
    names = known(classes)
    there = {f.name for f in dataclasses.fields(TrainConfig)}
    unknown = sorted(set(data["config"]) - there)
    if unknown:
        raise ValueError(
            f"the config has settings that this version does not know: {unknown}; it was written "
            f"by lrl_jax {data.get('version')}."
        )
    fields = dict(data["config"])
    recorded = fields.pop("env", None)
    found = {name: decode(value, names, name) for name, value in fields.items()}
    return TrainConfig(env=_env(recorded, names, env), **found)


def _env(recorded: Any, names: Mapping[str, Any], given: Any) -> Any:
    """The environment of a file: its id, one that is given, or made by a class that is known."""
    if given is not None:
        return given
    if isinstance(recorded, str) or not recorded or "object" not in recorded:
        return decode(recorded, names, "env")
    name = recorded["object"]
    if recorded.get("plain") and name in names:
        return names[name]()
    raise ValueError(f"env was a {name} object, which no file can hold: pass it again, env=....")


def load_config(run: str | Path, classes: Iterable[Any] = (), env: Any = None) -> TrainConfig:
    """Read the config of a run folder; see `from_json`."""
    path = Path(run) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{run} is not a run folder: it has no {CONFIG}.")
    try:
        return from_json(path.read_text(), classes, env)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None


def differences(there: TrainConfig, here: TrainConfig) -> list[str]:
    """Where two configs differ, in words."""
    return _differences(*(json.loads(to_json(config))["config"] for config in (there, here)))


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict) and set(old) == set(new):
        pairs = ((f"{path}.{k}" if path else str(k), old[k], new[k]) for k in old)
        return [found for name, a, b in pairs for found in _differences(a, b, name)]
    return [] if old == new else [f"{path}: {old!r} there, {new!r} here"]


def own_classes(config: TrainConfig) -> list[Any]:
    """Classes and functions that a config is made of."""
    env = [] if isinstance(config.env, str) else [type(config.env)]
    return classes_of((config.levels, config.obs_maps or ())) + env
