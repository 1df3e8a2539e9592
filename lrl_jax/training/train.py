"""Training as pure functions: rounds of ticks and updates, tests between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax import envs
from lrl_jax.collectors import Episodes, RolloutCarry, evaluate, init_carry, rollout
from lrl_jax.envs import Maze2D
from lrl_jax.envs.gymnasium_adapter import is_gymnasium
from lrl_jax.hierarchies import Hierarchy, HierarchyState
from lrl_jax.levels import SkillLevel
from lrl_jax.randomness import Salt
from lrl_jax.training.config import TrainConfig
from lrl_jax.training.skill_tests import skill_quality

_TESTED_SKILLS = 512
_SUCCESS = {"is_success", "success"}  # names in the info of a step


@dataclasses.dataclass(frozen=True, eq=False)
class Trainer:
    """What a config builds: the hierarchy, its environment, and the steps of a run.

    Attributes:
        config: the settings.
        hierarchy: in train mode.
        env, params: gymnax environment and its parameters.
        has_success: whether the environment tells success: `is_success` or `success` in the info
            of its steps.
        skill_starts: positions [N, 2] that interim tests start skills from, in mazes with a skill
            level; else None.
    """

    config: TrainConfig
    hierarchy: Hierarchy
    env: Any
    params: Any
    has_success: bool = True
    skill_starts: np.ndarray | None = None

    @classmethod
    def build(cls, config: TrainConfig) -> Trainer:
        """Make the environment and the hierarchy of a config."""
        if config.env.startswith(envs.GYMNASIUM):
            return cls._build_on_host(config)
        env, params = envs.make(config.env)
        hierarchy = _hierarchy(config, env, params)
        starts = None
        if isinstance(env, Maze2D) and isinstance(hierarchy.levels[-1], SkillLevel):
            starts = env.free_positions(jax.random.key(Salt.TEST), _TESTED_SKILLS)
        success = _tells_success(hierarchy, env, params)
        return cls(config, hierarchy, env, params, success, starts)

    @classmethod
    def _build_on_host(cls, config: TrainConfig) -> Trainer:
        """For a Gymnasium environment."""
        if config.devices > 1:
            raise ValueError(
                f"devices={config.devices}, but {config.env} runs on the host, which they cannot "
                f"share: use workers={config.devices}."
            )
        if config.seeds > 1:
            raise ValueError(
                f"seeds={config.seeds}, but {config.env} runs on the host, where agents are not "
                f"vmapped: train one seed after another."
            )
        env, _ = envs.make(config.env, num_envs=config.n_env_instances)
        probe, _ = envs.make(config.env)
        probe.reset(seed=0)
        success = bool(_SUCCESS & set(probe.step(probe.action_space.sample())[4]))
        probe.close()
        return cls(config, _hierarchy(config, env, None), env, None, success)

    @property
    def on_host(self) -> bool:
        """Whether the environment is Gymnasium's: `init`, `chunk` and `test` do not apply then."""
        return is_gymnasium(self.env)

    def make_test_env(self, n: int) -> Any:
        """Another Gymnasium vector environment of n instances, for tests on the host."""
        return envs.make(self.config.env, num_envs=n)[0]

    @property
    def episode_ticks(self) -> int:
        """Ticks after which every episode has ended."""
        return int(self.params.max_steps_in_episode)

    def init(self, key: jax.Array) -> RolloutCarry:
        """Start a run; consumes `key`."""
        return init_carry(self.hierarchy, key, self.config.n_env_instances)

    def chunk(self, carry: RolloutCarry) -> tuple[RolloutCarry, dict[str, jax.Array]]:
        """The rounds up to the next interim test. Returns the carry and the rollout's metrics.

        They tell of numbers that were not finite, see `collectors.check_finite`.
        """
        config = self.config
        carry, out = rollout(
            self.hierarchy,
            carry,
            config.rounds_per_chunk * config.round_ticks,
            learn=True,
            learn_interval=config.round_ticks,
            stop_at_nan=True,
        )
        return carry, out.metrics

    def test(self, state: HierarchyState, key: jax.Array, n_episodes: int) -> Episodes:
        """One whole episode in each of `n_episodes` instances, in eval mode; consumes `key`."""
        return evaluate(self.hierarchy, state, key, n_episodes)

    def test_metrics(self, state: HierarchyState, chunk: jax.Array | int) -> dict[str, jax.Array]:
        """The interim test behind a chunk, means over its episodes.

        test_return, test_return_std and, where the environment tells success, test_success (at any
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


def _hierarchy(config: TrainConfig, env: Any, params: Any) -> Hierarchy:
    obs_maps = getattr(config.agent, "obs_maps", None)
    levels = config.agent.levels(env, config.total_steps)
    return Hierarchy(levels, env, params, obs_maps and obs_maps(env))


def _tells_success(hierarchy: Hierarchy, env: Any, params: Any) -> bool:
    space = hierarchy.action_space

    def info_of_a_step(keys):
        _, env_state = env.reset(keys[0], params)
        return env.step(keys[1], env_state, jnp.zeros(space.shape, space.dtype), params)[5]

    info = jax.eval_shape(info_of_a_step, jax.random.split(jax.random.key(0)))
    return bool(_SUCCESS & set(info))


def make_train(config: TrainConfig) -> Callable[[jax.Array], dict[str, Any]]:
    """Build `train(key) -> {"state", "metrics"}`, the whole run in one traceable function.

    It can be jitted and vmapped over keys: `jax.jit(jax.vmap(make_train(config)))(keys)` trains as
    many agents at once; `take_seed` picks one out.

    Returns:
        A function of a typed key. `state` is the final HierarchyState; `metrics` maps names to
        arrays [chunks], one entry for each interim test.
    """
    trainer = Trainer.build(config)
    if trainer.on_host:
        raise ValueError(
            f"{config.env} runs on the host and cannot be traced: use run_training, or a Collector."
        )

    def train(key: jax.Array) -> dict[str, Any]:
        def step(carry, chunk):
            carry, metrics = trainer.chunk(carry)
            return carry, metrics | trainer.test_metrics(carry.hierarchy, chunk)

        carry, metrics = jax.lax.scan(step, trainer.init(key), jnp.arange(config.n_chunks))
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
