"""A level that learns a policy on its own recent rows: PPO."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax.algorithms import PPO, PPOBatch
from lrl_jax.buffers import Replay
from lrl_jax.levels.base import Context, Decision, LevelSpec
from lrl_jax.levels.learner_levels import AlgorithmLearner, AlgorithmLevel
from lrl_jax.levels.normalised import check_entries, check_normalised
from lrl_jax.settings import check_int, check_kind, optional, put_checked
from lrl_jax.spaces import Box, Discrete, Space


@dataclasses.dataclass(frozen=True)
class PPOLevel(AlgorithmLevel):
    """Decides in a Box or a Discrete space and learns with PPO (Schulman et al. 2017).

    With one level it is flat PPO. Under a level that sends `level_input_space` its networks take
    the input next to the observation; above others it decides their input, and its rollout
    counts its own decisions, not environment steps. In evaluation it is deterministic. A truncated
    row bootstraps from its next observation, the true final one; a terminated row does not. Where
    control was handed back, the value after a row is that of the next row's input.

    Attributes:
        algorithm: hyperparameters of PPO, with its functions.
        rollout_length: decisions of each instance between updates, if nothing cuts them short.
        control_interval: rows after which control goes back to the level above; None: never.
        level_input_space: what a level above sends, which conditions the networks. None: no input.
        learn_from, learn_until: environment steps; updates due outside are dropped.
        reward_discount: see `Level`.
        running_normaliser: whether entries of the observation without finite bounds are normalised
            by their running mean and std, see `RunningStatistics`.
        reward_scaling: whether rewards are divided by the running std of discounted returns.
        normaliser_clip: largest magnitude of what either gives.
    """

    algorithm: PPO = PPO()
    rollout_length: int = 128
    control_interval: int | None = None
    level_input_space: Space | None = None
    learn_from: float = 0.0
    learn_until: float = math.inf
    reward_discount: Any = 1.0

    running_normaliser: bool = dataclasses.field(default=False, kw_only=True)
    reward_scaling: bool = dataclasses.field(default=False, kw_only=True)
    normaliser_clip: float = dataclasses.field(default=10.0, kw_only=True)

    n_updates = 1

    def __post_init__(self):
        super().__post_init__()
        put_checked(self, check_kind, ("algorithm",), PPO)
        put_checked(self, check_int, ("rollout_length",), 1)
        put_checked(self, optional(check_kind), ("level_input_space",), Box, Discrete)
        check_normalised(self)

    def check(self, spec: LevelSpec) -> None:
        self.algorithm.check(spec.action_space)
        check_entries(self, spec)
        rows = self.rollout_length * spec.n_env_instances
        if rows < self.algorithm.n_minibatches:
            raise ValueError(
                f"{rows} rows ({self.rollout_length} of each of {spec.n_env_instances} instances) "
                f"cannot fill {self.algorithm.n_minibatches} minibatches: raise rollout_length or "
                f"lower n_minibatches."
            )

    def init_learner(self, key: jax.Array, spec: LevelSpec) -> AlgorithmLearner:
        """Create the algorithm's state for this place; consumes `key`."""
        space = self.level_input_space
        condition_dim = 0 if space is None else space.dim
        state = self.algorithm.init(key, spec.feature_box.dim, condition_dim, spec.action_space)
        return AlgorithmLearner.of(self, state, {}, spec)

    def act(self, learner: AlgorithmLearner, memory, obs, ctx: Context) -> Decision:
        x, c = learner.see(obs), learner.hear(ctx.level_input, ())
        explores = ctx.explores if ctx.training else False
        action, log_prob = self.algorithm.act(learner.state, x, c, ctx.key, explores)
        return Decision(action, memory, {"log_prob": log_prob, "version": learner.state.version})

    def learn(self, learner: AlgorithmLearner, replay: Replay, ctx: Context):
        """Update on all rows since the last update; consumes the key."""
        key_rows, key_update = jax.random.split(ctx.key)
        learner = learner.replace(state=self.algorithm.at(learner.state, ctx.env_steps))
        batch = self.batch(learner, replay, key_rows)
        state, metrics = self.algorithm.update(learner.state, batch, key_update)
        return learner.replace(state=state), metrics

    def batch(self, learner: AlgorithmLearner, replay: Replay, key: jax.Array) -> PPOBatch:
        """Features of all rows since the last update; `key` is consumed if the reward draws."""
        rows, mask = replay.fresh(key=key)
        inputs = following = rows.level_input
        breaks = rows.done
        if learner.condition.spaces:
            following = replay.next_input(rows)
            breaks = breaks | rows.hands_back
        is_followed = jnp.concatenate([mask[1:], jnp.zeros_like(mask[:1])])
        return PPOBatch(
            obs=learner.see(rows.obs),
            condition=learner.hear(inputs, mask.shape),
            act=rows.act,
            log_prob=rows["log_prob"],
            version=rows["version"],
            rew=rows.rew.astype(jnp.float32),
            obs_next=learner.see(rows.obs_next),
            condition_next=learner.hear(following, mask.shape),
            terminated=rows.terminated,
            ended=rows.done,
            continues=is_followed & ~breaks,
            elapsed_env_steps=rows.elapsed_env_steps,
            mask=mask,
        )
