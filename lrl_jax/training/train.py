"""Training as pure functions: rounds of ticks and updates, tests between them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax import envs
from lrl_jax.collectors import Episodes, RolloutCarry, evaluate, init_carry, rollout
from lrl_jax.env_spec import is_gymnasium
from lrl_jax.envs import Maze2D
from lrl_jax.envs.stepping import reset_all, step_all
from lrl_jax.hierarchies import Hierarchy, HierarchyState
from lrl_jax.levels import SkillLevel
from lrl_jax.randomness import Salt
from lrl_jax.training.config import TrainConfig
from lrl_jax.training.skill_tests import skill_quality
from lrl_jax.training.sweeps import swept

_TESTED_SKILLS = 512
_MOST_PROBE_STEPS = 10_000
_SUCCESS = {"is_success", "success"}  # names in the info of a step


@dataclasses.dataclass(frozen=True, eq=False)
class Trainer:
    """What a config builds: the hierarchy, its environment, and the steps of a run.

    Attributes:
        config: the settings, in environment steps.
        hierarchy: in train mode.
        env, params: environment and its parameters; None for Gymnasium's.
        has_success: whether the environment reports success: `is_success` or `success` in the info
            of its steps.
        skill_starts: positions [N, 2] that interim tests start skills from, in mazes with a skill
            level; else None.
        learners: one for each level that the run begins with, None for a fresh one.
    """

    config: TrainConfig
    hierarchy: Hierarchy
    env: Any
    params: Any
    has_success: bool = True
    skill_starts: np.ndarray | None = None
    learners: tuple[Any, ...] | None = None

    @classmethod
    def build(cls, config: TrainConfig, learners: Sequence[Any] | None = None) -> Trainer:
        """Make the environment and the hierarchy of a config.

        Raises:
            ValueError, TypeError: if levels, environment, devices and learners do not fit.
        """
        config = config.resolved()
        env, params = make_env(config)
        if is_gymnasium(env):
            _refuse_on_host(config, env)
        hierarchy = hierarchy_of(config, env, params)
        if learners is not None:
            learners = tuple(learners)
            hierarchy.init(jax.random.key(0), config.n_env_instances, learners)  # checks them
        if is_gymnasium(env):
            trainer = cls(config, hierarchy, env, None, False, learners=learners)
            return dataclasses.replace(trainer, has_success=_told_on_host(trainer))
        starts = None
        if isinstance(env, Maze2D) and isinstance(hierarchy.levels[-1], SkillLevel):
            starts = env.free_positions(jax.random.key(Salt.TEST), _TESTED_SKILLS)
        success = _tells_success(hierarchy, env, params)
        return cls(config, hierarchy, env, params, success, starts, learners)

    @property
    def on_host(self) -> bool:
        """Whether the environment is Gymnasium's: `init`, `chunk` and `test` do not apply then."""
        return is_gymnasium(self.env)

    def make_test_env(self, n: int) -> Any:
        """Another Gymnasium vector environment of n instances, for tests on the host.

        Raises:
            ValueError: if the environment does not say how it was made.
        """
        config = self.config
        if isinstance(config.env, str):
            return make_env(config, n)[0]
        spec = getattr(self.env, "spec", None)
        if spec is None:
            raise ValueError(
                f"{config.name} has no spec, so that no environment like it can be made for tests: "
                f"register it with gymnasium and give its id, 'gymnasium/<id>'."
            )
        return gymnasium.make_vec(spec, num_envs=n, vectorization_mode="sync")

    def init(self, key: jax.Array, settings: Mapping[str, Any] | None = None) -> RolloutCarry:
        """Start a run; consumes `key`.

        Args:
            key: typed random key.
            settings: swept settings by path, float [] each; may be traced.
        """
        hierarchy, n = self.hierarchy, self.config.n_env_instances
        carry = init_carry(hierarchy, key, n)
        state = carry.hierarchy
        if settings:
            # The key of the hierarchy's state in `init_carry`: settings alone make the difference.
            state = swept(hierarchy, jax.random.split(key, 3)[2], state, settings)
        if self.learners is not None:
            state = hierarchy.reset(hierarchy.with_learners(state, self.learners))
        return carry if state is carry.hierarchy else carry.replace(hierarchy=state)

    def chunk(
        self, carry: RolloutCarry, n_rounds: int
    ) -> tuple[RolloutCarry, dict[str, jax.Array]]:
        """The rounds up to an interim test. Returns the carry and the rollout's metrics.

        They report numbers that were not finite, see `collectors.check_finite`.
        """
        ticks = self.config.round_ticks
        carry, out = rollout(
            self.hierarchy,
            carry,
            n_rounds * ticks,
            learn=True,
            learn_interval=ticks,
            stop_at_nan=self.config.nan == "raise",
        )
        return carry, out.metrics

    def test(self, state: HierarchyState, key: jax.Array, n_episodes: int) -> Episodes:
        """One whole episode in each of `n_episodes` instances, in eval mode; consumes `key`."""
        limit = self.config.test_max_steps
        return evaluate(self.hierarchy, state, key, n_episodes, max_steps=limit)

    def test_metrics(self, state: HierarchyState, chunk: jax.Array | int) -> dict[str, jax.Array]:
        """The interim test after a chunk, means over its episodes.

        test_return, test_return_std and, if the environment reports success, test_success (at any
        step) and test_success_at_end; for skills in mazes also what `skill_quality` returns.
        """
        key = jax.random.fold_in(jax.random.key(Salt.TEST), chunk)
        episodes = self.test(state, key, self.config.test_episodes)
        metrics = self.means_of(episodes)
        if self.skill_starts is not None:
            quality = skill_quality(self.hierarchy, state, self.skill_starts, key)
            metrics |= {f"skill_{name}": value for name, value in quality.items()}
        return metrics

    def means_of(self, episodes: Episodes) -> dict[str, Any]:
        """What a test says of its episodes."""
        metrics = {
            "test_return": episodes.episode_return.mean(),
            "test_return_std": episodes.episode_return.std(),
        }
        if self.has_success:
            metrics["test_success"] = episodes.success.mean(dtype=np.float32)
            metrics["test_success_at_end"] = episodes.success_at_end.mean(dtype=np.float32)
        return metrics


def hierarchy_of(config: TrainConfig, env: Any, params: Any) -> Hierarchy:
    """The hierarchy of a config in its environment; see `make_env`."""
    return Hierarchy(
        config.levels, env, params, config.obs_maps, signals=config.signals, frozen=config.frozen
    )


def make_env(config: TrainConfig, n: int | None = None) -> tuple[Any, Any]:
    """The environment of a config and its parameters; None for Gymnasium's.

    Args:
        config: the config.
        n: instances of one of Gymnasium's, instead of the config's.

    Raises:
        ValueError, TypeError: for an id, settings or parameters that do not exist.
    """
    env: Any = config.env
    params: Any = None
    if isinstance(env, str):
        n = config.n_env_instances if n is None else n
        on_host = {"num_envs": n} if env.startswith(envs.GYMNASIUM) else {}
        env, params = envs.make(env, **on_host, **dict(config.env_settings))
    elif not is_gymnasium(env):
        params = env.default_params
    changes = config.env_params
    if not isinstance(changes, tuple):
        return env, changes
    if not changes:
        return env, params
    there = [f.name for f in dataclasses.fields(params)] if dataclasses.is_dataclass(params) else []
    unknown = sorted(set(dict(changes)) - set(there))
    if unknown:
        raise ValueError(
            f"env_params has {unknown}, but the parameters of {config.name} have "
            f"{', '.join(there) or 'no fields'}."
        )
    record: Any = params
    return env, dataclasses.replace(record, **dict(changes))


def _refuse_on_host(config: TrainConfig, env: Any) -> None:
    """Refuse what environments on the host cannot do."""
    if config.devices > 1:
        raise ValueError(
            f"devices={config.devices}, but {config.name} runs on the host, which they cannot "
            f"share: use workers={config.devices}."
        )
    if config.n_agents > 1:
        raise ValueError(
            f"{config.n_agents} agents (seeds={config.seeds}), but {config.name} runs on the host, "
            f"where agents are not vmapped: train one after another."
        )
    n = getattr(env, "num_envs", 1)
    if n != config.n_env_instances:
        raise ValueError(
            f"n_env_instances={config.n_env_instances}, but env holds {n}: make them the same."
        )


def _tells_success(hierarchy: Hierarchy, env: Any, params: Any) -> bool:
    space = hierarchy.action_space

    def told(keys):
        _, env_state = reset_all(env, keys[:1], params)
        action = jnp.zeros((1, *space.shape), space.dtype)
        info = step_all(env, keys[1:], env_state, action, params)[5]
        return bool(_SUCCESS & {k for k, x in info.items() if getattr(x, "size", 0) == 1})

    tells = []
    jax.eval_shape(lambda keys: tells.append(told(keys)), jax.random.split(jax.random.key(0)))
    return tells[0]


def _told_on_host(trainer: Trainer) -> bool:
    """Whether an episode of random actions reports success at any step, the last included."""
    env = trainer.make_test_env(1)
    try:
        env.reset(seed=0)
        env.action_space.seed(0)
        for _ in range(_MOST_PROBE_STEPS):
            _, _, terminated, truncated, info = env.step(env.action_space.sample())
            if _SUCCESS & {*info, *info.get("final_info", ())}:
                return True
            if terminated.any() or truncated.any():
                return False
        return False
    finally:
        env.close()


def make_train(config: TrainConfig) -> Callable[..., dict[str, Any]]:
    """Build `train(key, settings={}) -> {"state", "metrics"}`, the whole run as a pure function.

    It can be jitted and vmapped over keys and settings:
    `jax.jit(jax.vmap(make_train(config)))(keys)` trains as many agents at once; `take_seed` picks
    one out. Settings that levels copy into their learners are swept by path:
    `jax.vmap(lambda key, rate: train(key, {"levels.0.learning_rate": rate}))(keys, rates)`.

    Returns:
        A function of a typed key and a mapping of settings. `state` is the final HierarchyState;
        `metrics` maps names to arrays [chunks], one entry for each interim test.
    """
    trainer = Trainer.build(config)
    config = trainer.config
    if trainer.on_host:
        raise ValueError(
            f"{config.name} runs on the host and cannot be traced: use lrl_jax.train, or a "
            f"Collector."
        )
    if config.sweep or config.seeds > 1:
        raise ValueError(
            f"a config with seeds={config.seeds} and sweep={dict(config.sweep)} describes several "
            f"agents: map make_train over keys and settings, or use lrl_jax.train."
        )

    def train(key: jax.Array, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        def step(n_rounds, carry, chunk):
            carry, metrics = trainer.chunk(carry, n_rounds)
            return carry, metrics | trainer.test_metrics(carry.hierarchy, chunk)

        *_, last = chunks = config.chunks
        n_whole = sum(size == chunks[0] for size in chunks)
        whole = functools.partial(step, chunks[0])
        carry, metrics = jax.lax.scan(whole, trainer.init(key, settings), jnp.arange(n_whole))
        if n_whole < len(chunks):
            carry, more = step(last, carry, jnp.asarray(n_whole))
            metrics = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), metrics, more)
        return {"state": carry.hierarchy, "metrics": metrics}

    return train


def take_seed(tree: Any, i: int) -> Any:
    """Pick copy i out of a tree that vmap over seeds gave a leading axis.

    Raises:
        ValueError: if there is no such copy, or the leaves share no leading axis.
    """
    sizes = {x.shape[:1] for x in jax.tree.leaves(tree)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"there is no seed {i}: the leaves have no leading axis in common (found "
            f"{sorted(sizes)}). Pass what vmap over seeds, or a run of several seeds, returned."
        )
    ((n,),) = sizes
    if not -n <= i < n:
        raise ValueError(f"there is no seed {i} in a tree of {n}: take one from 0 to {n - 1}.")
    return jax.tree.map(lambda x: x[i], tree)
