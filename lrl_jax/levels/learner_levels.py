"""Levels that learn a policy with an off-policy algorithm: SAC, DQN, TD-MPC2."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lrl_jax import struct
from lrl_jax.algorithms import DQN, SAC, TDMPC2, Batch, Features, Hindsight, Scale
from lrl_jax.algorithms.base import present_settings
from lrl_jax.buffers import Replay, Row
from lrl_jax.levels.base import Context, Decision, Level, LevelSpec
from lrl_jax.levels.normalised import check_entries, check_normalised, hook, statistics_of
from lrl_jax.models.running_statistics import RunningStatistics, without_bounds
from lrl_jax.randomness import Salt
from lrl_jax.settings import check_float, check_int, check_kind, optional, put_checked
from lrl_jax.spaces import Box, Discrete, Space


class AlgorithmLearner(struct.Node):
    """What a level with an algorithm shares over instances.

    Attributes:
        state: of the algorithm.
        settings: warm_up_steps, float32 [].
        observation: how observations become features. The bounds are those of the environment that
            the learner began in, also after it has been moved to another.
        skills: what levels that learn skills share in addition; else None.
        statistics: running ones of the level's rows, where it keeps any.
        condition: how level inputs become features (static).
        action_space: what the level decides (static).
        obs_shape: of one mapped observation (static).
    """

    state: Any
    settings: dict[str, jax.Array]
    observation: Scale
    skills: Any = None
    statistics: RunningStatistics = struct.field(default_factory=RunningStatistics)
    condition: Features = struct.field(pytree_node=False, default=Features())
    action_space: Any = struct.field(pytree_node=False, default=None)
    obs_shape: tuple[int, ...] = struct.field(pytree_node=False, default=())

    @classmethod
    def of(cls, level: Any, state: Any, settings: Any, spec: LevelSpec) -> AlgorithmLearner:
        """Before the first update, for an algorithm's `state` and the level's place."""
        box, space = spec.feature_box, level.level_input_space
        statistics = statistics_of(level, box)
        return cls(
            state=state,
            settings=settings,
            observation=Scale.of(box, without_bounds(box) if level.running_normaliser else None),
            statistics=statistics,
            condition=Features(() if space is None else (space,)),
            action_space=spec.action_space,
            obs_shape=spec.obs_shape,
        )

    def flat(self, obs: jax.Array) -> jax.Array:
        """Observations [..., *obs_shape] as vectors [..., X]; elements of a Discrete as one-hot."""
        n_values = self.observation.centre.shape[-1]
        if not self.obs_shape and n_values > 1:
            return jax.nn.one_hot(obs, n_values)
        lead = obs.shape[: obs.ndim - len(self.obs_shape)]
        return obs.reshape(*lead, math.prod(self.obs_shape))

    def see(self, obs: jax.Array) -> jax.Array:
        """Features [..., X] of observations [..., *obs_shape]."""
        return self.statistics.see(self.observation(self.flat(obs)))

    def with_rows(self, rows: Row, mask: jax.Array) -> AlgorithmLearner:
        """With the statistics of more rows [...], those of the mask."""
        new = self.statistics.update(self.flat(rows.obs), mask, rows.discounted_return)
        return self.replace(statistics=new)

    def hear(self, level_input: Any, lead: tuple[int, ...]) -> jax.Array:
        """Features [*lead, C] of level inputs [*lead, *input shape]."""
        inputs = (level_input,) if self.condition.spaces else ()
        return self.condition(*inputs, batch_shape=lead)


class AlgorithmLevel(Level):
    """Abstract: what levels share whose learner is an `AlgorithmLearner`."""

    algorithm: Any
    level_input_space: Space | None

    def input_space(self) -> Space | None:
        return self.level_input_space

    def gamma(self, learner: AlgorithmLearner) -> jax.Array:
        return present_settings(learner.state)["gamma"]

    def row_discount(self, learner: AlgorithmLearner, elapsed_env_steps: jax.Array) -> jax.Array:
        gamma = self.gamma(learner)
        smdp = self.algorithm.smdp_discount
        return gamma ** elapsed_env_steps.astype(jnp.float32) if smdp else gamma

    @property
    def update_statistics(self) -> Any:
        """How rows enter the running statistics; None where the level keeps none."""
        return hook(self, lambda learner, rows, mask, ctx: learner.with_rows(rows, mask))

    def reward(self, learner: AlgorithmLearner, rows: Row, ctx: Context) -> jax.Array:
        """Rewards [B] as accumulated, or scaled by their running statistics."""
        return learner.statistics.scaled(rows.rew)


@dataclasses.dataclass(frozen=True)
class LearnerLevel(AlgorithmLevel):
    """Abstract: a level that acts and learns as its algorithm does, at any place of a hierarchy.

    In training it acts at random and does not learn until the warm-up is over; in evaluation it is
    deterministic. A truncated row bootstraps from its next observation, the true final one; a
    terminated row does not. Where control is handed back, the value after a row is that of the
    next row's input.

    Attributes:
        algorithm: hyperparameters of the algorithm, with its functions.
        buffer_size: rows of the replay buffer, over all instances.
        update_interval, n_updates: `n_updates` updates for every `update_interval` new rows.
        batch_size: rows, or pieces of trajectories, of an update.
        warm_up_steps: environment steps with random actions and without updates. The rows are
            kept; the updates they would owe are not made later.
        hindsight: relabels sampled rows; None for none.
        control_interval: rows after which control goes back to the level above; None: never.
        level_input_space: what a level above sends, which conditions the networks. None: no input.
        chunk_size: instances that a costly algorithm decides for at a time. None: all, if it is
            cheap; if it plans, as many as it takes to fill the device with candidates.
        reward_discount: see `Level`.
        running_normaliser: whether entries of the observation without finite bounds are normalised
            by their running mean and std, see `RunningStatistics`.
        reward_scaling: whether rewards are divided by the running std of discounted returns.
        normaliser_clip: largest magnitude of what either gives.
    """

    algorithm: Any
    buffer_size: int = 100_000
    update_interval: int = 1
    n_updates: int = 1
    batch_size: int = 256
    warm_up_steps: float = 1000
    hindsight: Hindsight | None = None
    control_interval: int | None = None
    level_input_space: Space | None = None
    chunk_size: int | None = None
    reward_discount: Any = 1.0
    running_normaliser: bool = dataclasses.field(default=False, kw_only=True)
    reward_scaling: bool = dataclasses.field(default=False, kw_only=True)
    normaliser_clip: float = dataclasses.field(default=10.0, kw_only=True)

    #: Algorithms that the level takes; none for an abstract level.
    algorithms: ClassVar[tuple[type, ...]] = ()

    def __post_init__(self):
        kinds = self.algorithms
        if not kinds:
            raise TypeError(f"{type(self).__name__} is abstract: use SACLevel, DQNLevel, ...")
        super().__post_init__()
        put_checked(self, check_kind, ("algorithm",), *kinds)
        put_checked(self, check_int, ("buffer_size", "batch_size"), 1)
        put_checked(self, check_float, ("warm_up_steps",), 0.0)
        put_checked(self, optional(check_kind), ("level_input_space",), Box, Discrete)
        put_checked(self, optional(check_kind), ("hindsight",), Hindsight)
        check_normalised(self)

    @property
    def candidates(self) -> int:
        """Plans that a decision compares at a time, where the algorithm plans."""
        return self.algorithm.planner.num_samples if isinstance(self.algorithm, TDMPC2) else 0

    @property
    def learn_from(self) -> float:
        """Environment steps of the warm up."""
        return self.warm_up_steps

    def check(self, spec: LevelSpec) -> None:
        self.algorithm.check(spec.action_space)
        check_entries(self, spec)
        if self.hindsight is not None:
            space = self.level_input_space
            is_box = isinstance(space, Box)
            is_discounted = self.reward_discount != 1.0 and spec.decision_env_steps != 1
            input_dim = space.dim if is_box else None
            self.hindsight.check(math.prod(spec.obs_shape), input_dim, is_discounted)
        rows, n = self.algorithm.sequence_length, spec.n_env_instances
        if self.n_updates and rows > max(self.buffer_size // n, 1):
            raise ValueError(
                f"pieces of {rows} rows do not fit into {self.buffer_size // n} rows for each of "
                f"{n} instances: raise buffer_size={self.buffer_size} to {rows * n} or more."
            )

    def condition_dim(self, spec: LevelSpec) -> int:
        """Size of what the networks see next to the observation."""
        space = self.level_input_space
        return 0 if space is None else space.dim

    def init_learner(self, key: jax.Array, spec: LevelSpec) -> AlgorithmLearner:
        """Create the algorithm's state for this place; consumes `key`."""
        state = self.algorithm.init(
            key, spec.feature_box.dim, self.condition_dim(spec), spec.action_space
        )
        settings = {"warm_up_steps": jnp.array(self.warm_up_steps, jnp.float32)}
        return AlgorithmLearner.of(self, state, settings, spec)

    def init_memory(self, learner: AlgorithmLearner) -> Any:
        return self.algorithm.init_memory(learner.state)

    # ----------------------------------------------------------------- acting

    @property
    def draft(self) -> Any:
        """Random actions of the warm up, where the algorithm's own are costly."""
        return self._draft if self.chunk_size or self.candidates else None

    def _draft(self, learner, memory, obs, ctx: Context):
        space = learner.action_space
        if not ctx.training or not self.warm_up_steps:
            zeros = jnp.zeros(space.shape, space.dtype)
            return Decision(zeros, memory), memory, jnp.ones((), bool)
        action = self._random_action(learner, ctx.key)
        return Decision(action, memory), memory, ~self._at_random(learner, ctx)

    def _at_random(self, learner: AlgorithmLearner, ctx: Context) -> jax.Array:
        return ctx.explores & (ctx.env_steps < learner.settings["warm_up_steps"])

    def _random_action(self, learner: AlgorithmLearner, key: jax.Array) -> jax.Array:
        # The algorithm draws from `key` itself: fold in what none of its splits reaches.
        return learner.action_space.sample(jax.random.fold_in(key, Salt.RANDOM_MODE))

    def act(self, learner, memory, obs, ctx: Context) -> Decision:
        state = self.algorithm.at(learner.state, ctx.env_steps)
        action, new = self.decide(learner.replace(state=state), memory, obs, ctx)
        if ctx.training and self.warm_up_steps:
            random = self._at_random(learner, ctx)
            action = jnp.where(random, self._random_action(learner, ctx.key), action)
            new = jax.tree.map(lambda x, y: jnp.where(random, y, x), new, memory)
        return Decision(action, new)

    def explores(self, ctx: Context) -> bool | jax.Array:
        """Whether the policy adds noise; False where that is known before tracing."""
        return ctx.explores if ctx.training else False

    def decide(self, learner, memory, obs, ctx: Context) -> tuple[jax.Array, Any]:
        """Decide as the algorithm does; consumes the key. Returns (action, memory)."""
        x, c = learner.see(obs), learner.hear(ctx.level_input, ())
        return self.algorithm.act(learner.state, memory, x, c, ctx.key, self.explores(ctx))

    def after_transition(self, learner, memory, row: Row, ctx: Context):
        memory, hand_back = Level.after_transition(self, learner, memory, row, ctx)
        if self.control_interval is not None:
            fresh = self.init_memory(learner)
            memory = jax.tree.map(lambda new, old: jnp.where(hand_back, new, old), fresh, memory)
        return memory, hand_back

    # --------------------------------------------------------------- learning

    def learn(self, learner: AlgorithmLearner, replay: Replay, ctx: Context):
        """Make one update; consumes the key."""
        key_rows, key_update = jax.random.split(ctx.key)
        learner = learner.replace(state=self.algorithm.at(learner.state, ctx.env_steps))
        rows, mask = self.sample(replay, key_rows)
        batch = self.batch(learner, replay, rows, mask)
        state, metrics = self.algorithm.update(learner.state, batch, key_update)
        return learner.replace(state=state), metrics

    def sample(
        self, replay: Replay, key: jax.Array, relabel: Any = None, rewarded: bool = True
    ) -> tuple[Row, jax.Array]:
        """Draw rows, [B], or pieces of trajectories, [T, B]; consumes `key`.

        Returns:
            The rows, relabelled, and which of them count, bool.
        """
        if self.hindsight is not None:
            relabel = functools.partial(self.hindsight.relabel, replay)
        more: dict[str, Any] = {"relabel": relabel, "rewarded": rewarded}
        n_steps = self.algorithm.sequence_length
        if n_steps > 1:
            return replay.pieces(key, self.batch_size, n_steps, **more)
        rows = replay.sample(key, self.batch_size, **more)
        return rows, jnp.ones(rows.rew.shape, bool)

    def batch(self, learner: AlgorithmLearner, replay: Replay, rows: Row, mask: jax.Array) -> Batch:
        """Features of sampled rows, whose leading axes are those of `mask`."""
        following = rows.level_input
        if learner.condition.spaces:
            following = replay.next_input(rows)
        conditions = (learner.hear(x, mask.shape) for x in (rows.level_input, following))
        return as_batch(learner, rows, mask, *conditions)


def as_batch(
    learner: AlgorithmLearner,
    rows: Row,
    mask: jax.Array,
    condition: jax.Array,
    condition_next: jax.Array,
) -> Batch:
    """Rows [...] as an algorithm takes them, with features of conditions [..., C]."""
    return Batch(
        obs=learner.see(rows.obs),
        condition=condition,
        act=rows.act,
        rew=rows.rew.astype(jnp.float32),
        obs_next=learner.see(rows.obs_next),
        condition_next=condition_next,
        terminated=rows.terminated,
        elapsed_env_steps=rows.elapsed_env_steps,
        mask=mask,
    )


@dataclasses.dataclass(frozen=True)
class SACLevel(LearnerLevel):
    """Decides in a bounded Box and learns with soft actor-critic (Haarnoja et al. 2018).

    With one level it is flat SAC; under a level that sends `level_input_space` its networks take
    the input next to the observation. See `LearnerLevel` for the other settings.

    Attributes:
        algorithm: hyperparameters of SAC.
    """

    algorithm: SAC = SAC()
    algorithms: ClassVar[tuple[type, ...]] = (SAC,)


@dataclasses.dataclass(frozen=True)
class DQNLevel(LearnerLevel):
    """Decides in a Discrete space and learns with deep Q-learning (Mnih et al. 2015).

    With one level it is flat DQN; under a level that sends `level_input_space` its network takes
    the input next to the observation, and it may itself choose among the inputs of a level below.
    See `LearnerLevel` for the other settings.

    Attributes:
        algorithm: hyperparameters of DQN.
    """

    algorithm: DQN = DQN()
    algorithms: ClassVar[tuple[type, ...]] = (DQN,)


@dataclasses.dataclass(frozen=True)
class TDMPC2Level(LearnerLevel):
    """Decides in a bounded Box by planning in a learned latent space (Hansen et al. 2024).

    Learns from pieces of trajectories of the horizon's length, which may cross the end of a stretch
    of control but never that of an episode. The kept plan restarts with every episode and every
    stretch of control. See `LearnerLevel` for the other settings.

    Attributes:
        algorithm: hyperparameters of TD-MPC2; `TDMPC2.small()` is meant for CPUs.
    """

    algorithm: TDMPC2 = TDMPC2()
    algorithms: ClassVar[tuple[type, ...]] = (TDMPC2,)
