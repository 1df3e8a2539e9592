"""What a run folder holds: its config, its agents, and what may change when it is resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lrl_jax.hierarchies import Hierarchy, HierarchyState
from lrl_jax.setting_trees import resolve
from lrl_jax.training import folder
from lrl_jax.training.config import TrainConfig, differences, load_config, own_classes
from lrl_jax.training.serial import ambiguous
from lrl_jax.training.sessions import read_checkpoint
from lrl_jax.training.train import Trainer, take_seed

#: Settings that may differ when a run is resumed.
_FREE = (
    "total_steps",
    "test_episodes",
    "final_test_episodes",
    "checkpoint_interval",
    "max_to_keep",
    "save_best",
    "stop_at",
    "loggers",
    "chunk_rounds",
)


def load_run(
    path: str | Path,
    seed: int | None = None,
    *,
    checkpoint: str | None = None,
    classes: Iterable[Any] = (),
    env: Any = None,
) -> tuple[Hierarchy, HierarchyState, Any, Any]:
    """Load what a run folder ended with: (hierarchy, state, env, params).

    Nothing that the folder names is imported or evaluated.

    Args:
        path: the run folder.
        seed: index of the agent to load, from 0, in a run of several. None for all of them: the
            leaves of the state then have a leading axis, and `take_seed(state, i)` picks one.
        checkpoint: "best" for that of `save_best`; the last one if None.
        classes: your own classes that the run's config names (levels, settings, environment), if
            they are not registered with `lrl_jax.register`.
        env: the environment of a run that was given an object.

    Raises:
        FileNotFoundError: if it is not a run folder, or has no such checkpoint.
        ValueError: if the run has no such agent, or names classes that are not known.
    """
    trainer, state = load_trainer(path, seed, checkpoint=checkpoint, classes=classes, env=env)
    return trainer.hierarchy, state, trainer.env, trainer.params


def load_trainer(
    run: str | Path,
    seed: int | None = None,
    *,
    checkpoint: str | None = None,
    classes: Iterable[Any] = (),
    env: Any = None,
) -> tuple[Trainer, HierarchyState]:
    """The trainer of a run folder and the state of a checkpoint; see `load_run`."""
    run = Path(run)
    config = load_config(run, classes, env)
    unclear = ambiguous((config.levels, config.obs_maps))
    if unclear:
        raise ValueError(
            f"the config of {run} names functions that cannot be distinguished ({unclear}): give "
            f"them names with def, and pass them as classes."
        )
    if seed is not None and not 0 <= seed < config.n_agents:
        count = "1 agent" if config.n_agents == 1 else f"{config.n_agents} agents"
        raise ValueError(
            f"there is no agent {seed} in {run}: the run has {count}, "
            f"take one from 0 to {config.n_agents - 1}."
        )
    path = folder.checkpoint_of(run, checkpoint)
    trainer = Trainer.build(dataclasses.replace(config, devices=1))
    state = read_checkpoint(trainer, path).hierarchy
    if config.n_agents > 1 and seed is not None:
        state = take_seed(state, seed)
    return trainer, state


def learners_of(
    learners: Sequence[Any] | None, classes: Iterable[Any] = ()
) -> tuple[Any, ...] | None:
    """Learners to begin with; instead of the folder of a run, its learner at the same place."""
    if learners is None:
        return None
    found = []
    for i, learner in enumerate(learners):
        if isinstance(learner, str | Path):
            _, state, _, _ = load_run(learner, classes=classes)
            if state.active_level.ndim > 1:
                raise ValueError(
                    f"{learner} is of several agents: pass take_seed(state, j).levels[{i}].learner."
                )
            if i >= len(state.levels):
                raise ValueError(f"{learner} has {len(state.levels)} levels, but no level {i}.")
            learner = state.levels[i].learner
        found.append(learner)
    return tuple(found)


# --------------------------------------------------------------- going on with a run


def config_of(run: Path, config: TrainConfig | None, classes: Iterable[Any], env: Any) -> Any:
    """The config of a folder; the classes of `config` are known."""
    known = list(classes)
    if config is not None:
        known += own_classes(config)
        env = config.env if env is None and not isinstance(config.env, str) else env
    return load_config(run, known, env)


def merged(
    stored: TrainConfig,
    given: TrainConfig | None,
    first_total: int,
    settings: str,
    total_steps: int | None,
) -> TrainConfig:
    """The config that a run is resumed with.

    Args:
        stored: of the run, in environment steps.
        given: the caller's, or None.
        first_total: total steps that the run began with.
        settings: "kept" or "new", see `train`.
        total_steps: instead of the run's, where there is no `given`.

    Raises:
        ValueError: if "kept" settings are others than those given.
    """
    if given is None:
        if settings == "new":
            raise ValueError('settings="new" needs a config: give the new settings.')
        total = stored.total_steps if total_steps is None else total_steps
        return dataclasses.replace(stored, total_steps=total)
    chunk_rounds = given.chunk_rounds or stored.chunk_rounds
    given = dataclasses.replace(given, chunk_rounds=chunk_rounds)
    if settings == "new":
        for name in ("seed", "seeds", "n_env_instances", "round_ticks", "sweep", "workers"):
            if getattr(given, name) != getattr(stored, name):
                raise ValueError(
                    f"{name}={getattr(given, name)}, but the run has {getattr(stored, name)}: that "
                    f"cannot change within a run. Begin another, with learners= of this one."
                )
        return given
    kept = {name: getattr(stored, name) for name in _FREE}
    levels = resolve(given.levels, first_total)
    found = differences(stored, dataclasses.replace(given, levels=levels, **kept))
    if found:
        raise ValueError(
            f"the run was begun with other settings: {'; '.join(found[:6])}. Go on with them "
            f'(no config, or the same), or ask for the new ones: settings="new".'
        )
    # Functions in it are the caller's own, which the file only names.
    return dataclasses.replace(given, levels=levels)


def steps_reached(run: Path) -> int:
    """Environment steps of a run's last checkpoint; 0 without any."""
    try:
        return folder.steps_of(folder.last_checkpoint(run))
    except FileNotFoundError:
        return 0
