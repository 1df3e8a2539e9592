"""What levels share that learn a policy with an algorithm: warm up, replay, hindsight, features."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lrl_jax import buffers, devices
from lrl_jax.algorithms import Batch, Features, Hindsight, Scale
from lrl_jax.levels.base import Level, LevelSpec, Row, as_rows
from lrl_jax.settings import check_float, check_int
from lrl_jax.spaces import Box, Discrete, Space

# Candidates that fill the matrix products of two cores.
CANDIDATES_PER_CHUNK = 1024


@struct.dataclass
class AlgorithmLearner:
    """What a level with an algorithm shares over instances.

    Attributes:
        state: of the algorithm.
        n_total_env_steps: float32 [].
        warm_up_steps: float32 [].
        observation: how observations become features. The bounds are those of the environment that
            the learner began in, also after it has been moved to another.
        condition: how level inputs become features (static).
        action_space: what the level decides (static).
    """

    state: Any
    n_total_env_steps: jax.Array
    warm_up_steps: jax.Array
    observation: Scale
    condition: Features = struct.field(pytree_node=False)
    action_space: Space = struct.field(pytree_node=False)

    @property
    def is_warm(self) -> jax.Array:
        """Whether the warm up is over, bool []."""
        return self.n_total_env_steps >= self.warm_up_steps


@dataclasses.dataclass(frozen=True)
class LearnerLevel(Level):
    """A level that acts and learns as its algorithm does, at any place of a hierarchy.

    In training it acts at random, and learns nothing, until the warm up is over; in evaluation it
    is deterministic. A truncated row bootstraps from its next observation, the true final one; a
    terminated row does not.

    Attributes:
        algorithm: settings of the algorithm, with its functions.
        buffer_size: rows of the replay buffer, over all instances.
        update_interval, n_updates: `n_updates` updates for every `update_interval` new rows.
        batch_size: rows, or pieces of trajectories, of an update.
        warm_up_steps: environment steps with random actions and without updates. The rows are
            kept; the updates they would owe are not made later.
        hindsight: relabels sampled rows; None for none.
        control_interval: rows after which control goes back to the level above; None: never.
        level_input_space: what a level above sends, which conditions the networks. None: no input.
        chunk_size: instances that a costly algorithm decides for at a time. None: all, where it is
            cheap; where it plans, the least number that has 1,024 candidates together.
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

    def __post_init__(self):
        for name, least in (
            ("buffer_size", 1),
            ("update_interval", 1),
            ("n_updates", 0),
            ("batch_size", 1),
        ):
            object.__setattr__(self, name, check_int(name, getattr(self, name), least))
        check_float("warm_up_steps", self.warm_up_steps, 0.0)
        if self.control_interval is not None:
            interval = check_int("control_interval", self.control_interval, 1)
            object.__setattr__(self, "control_interval", interval)
        planner = getattr(self.algorithm, "planner", None)
        if self.chunk_size is None and planner is not None:
            size = math.ceil(CANDIDATES_PER_CHUNK / planner.num_samples)
            object.__setattr__(self, "chunk_size", size)
        space = self.level_input_space
        if space is not None and not isinstance(space, Box | Discrete):
            raise TypeError(f"level_input_space is no Box or Discrete: {space!r}.")
        if self.hindsight is not None and not isinstance(self.hindsight, Hindsight):
            raise TypeError(f"hindsight must be a Hindsight, got {self.hindsight!r}.")

    def input_space(self) -> Space | None:
        """Space of what the level above sends; None if the level needs no input."""
        return self.level_input_space

    def check(self, spec: LevelSpec) -> None:
        """Raise a ValueError or TypeError if the level does not fit its place."""
        self.algorithm.check(spec.action_space)
        if self.hindsight is not None:
            space = self.level_input_space
            is_box = isinstance(space, Box)
            self.hindsight.check(math.prod(spec.obs_shape), space.dim if is_box else None)

    def check_buffer(self, learner: Any, capacity: int, n_env_instances: int) -> None:
        """Refuse rings that are too small for the pieces that the algorithm learns from."""
        rows = self.algorithm.sequence_length
        if self.n_updates and rows > capacity:
            raise ValueError(
                f"pieces of {rows} rows do not fit into {capacity} rows for each of "
                f"{n_env_instances} instances: raise buffer_size={self.buffer_size} to "
                f"{rows * n_env_instances} or more."
            )

    def init_learner(self, key: jax.Array, spec: LevelSpec) -> AlgorithmLearner:
        """Create the algorithm's state for this place; consumes `key`."""
        self.check(spec)
        space = self.level_input_space
        condition = Features(() if space is None else (space,))
        return AlgorithmLearner(
            state=self.algorithm.init(
                key, math.prod(spec.obs_shape), self.condition_dim(spec), spec.action_space
            ),
            n_total_env_steps=jnp.zeros((), jnp.float32),
            warm_up_steps=jnp.array(self.warm_up_steps, jnp.float32),
            observation=Scale.of(spec.obs_box),
            condition=condition,
            action_space=spec.action_space,
        )

    def condition_dim(self, spec: LevelSpec) -> int:
        """Size of what the networks see beside the observation."""
        space = self.level_input_space
        return 0 if space is None else space.dim

    def init_memory(self, learner: AlgorithmLearner) -> Any:
        """Memory of the algorithm at the start of an episode."""
        return self.algorithm.init_memory(learner.state)

    def observe_env_steps(self, learner: AlgorithmLearner, n_total_env_steps: jax.Array):
        """Tell the algorithm's schedules the total of environment steps, float32."""
        return learner.replace(
            n_total_env_steps=n_total_env_steps,
            state=self.algorithm.observe_env_steps(learner.state, n_total_env_steps),
        )

    def features(
        self, learner: AlgorithmLearner, obs: jax.Array, level_input: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Features [..., X] and [..., C] of observations [..., *obs_shape] and level inputs."""
        batch = obs.shape[:-1]
        inputs = (level_input,) if learner.condition.spaces else ()
        return learner.observation(obs), learner.condition(*inputs, batch_shape=batch)

    def prepare(
        self, learner, memory, obs, level_input, key, *, parent, training, control=None
    ) -> tuple[jax.Array, Any, jax.Array]:
        """Draw a random action during the warm up; a costly `act` is needed only after it.

        Returns:
            The action, the memory, and whether `act` is needed, bool [].
        """
        del obs, level_input, parent, control
        space = learner.action_space
        if not training or not self.warm_up_steps:
            return jnp.zeros(space.shape, space.dtype), memory, jnp.ones((), bool)
        return self._random_action(learner, key), memory, learner.is_warm

    def act(self, learner, memory, obs, level_input, key, *, parent, training, control=None):
        action, new_memory = self.decide(
            learner, memory, obs, level_input, key, parent, training, control
        )
        if training and self.warm_up_steps:
            warm = learner.is_warm
            action = jnp.where(warm, action, self._random_action(learner, key))
            new_memory = jax.tree.map(lambda x, y: jnp.where(warm, x, y), new_memory, memory)
        return action, new_memory

    def decide(self, learner, memory, obs, level_input, key, parent, training, control):
        """Decide as the algorithm does; consumes `key`. Returns (action, memory)."""
        del parent, control
        x, c = self.features(learner, obs, level_input)
        return self.algorithm.act(learner.state, memory, x, c, key, training)

    def _random_action(self, learner: AlgorithmLearner, key: jax.Array) -> jax.Array:
        # The algorithm draws from `key` itself: fold in what none of its splits reaches.
        return learner.action_space.sample(jax.random.fold_in(key, 0x5EED))

    def after_transition(self, learner, memory, row: Row):
        memory, hand_back = super().after_transition(learner, memory, row)
        if self.control_interval is not None:
            fresh = self.init_memory(learner)
            memory = jax.tree.map(lambda new, old: jnp.where(hand_back, new, old), fresh, memory)
        return memory, hand_back

    def ready(self, learner: AlgorithmLearner) -> jax.Array:
        """Whether the warm up is over, bool []."""
        return learner.is_warm

    def learn(self, learner: AlgorithmLearner, buffer: Any, key: jax.Array, *, parent: Any):
        """Make one update; consumes `key`."""
        key_batch, key_update = jax.random.split(key)
        batch = self.sample_batch(learner, buffer, key_batch, parent)
        state, metrics = self.algorithm.update(learner.state, batch, key_update)
        return learner.replace(state=state), metrics

    def sample_rows(self, buffer: Any, key: jax.Array) -> tuple[dict[str, Any], jax.Array]:
        """Draw rows, [B], or pieces of trajectories, [T, B], and relabel; consumes `key`.

        Returns:
            Fields of the rows with these leading axes, and which of them count, bool.
        """
        key_ids, key_hindsight = jax.random.split(key)
        n_steps = self.algorithm.sequence_length
        if n_steps == 1:
            ids = buffers.sample_ids(buffer, key_ids, self.batch_size)
            mask = jnp.ones(ids.shape, bool)
        else:
            ids, _, mask = buffers.sample_partial_trajectories(
                buffer, key_ids, self.batch_size, n_steps
            )
            mask = mask.T.astype(bool)
        rows = devices.split(buffers.gather(buffer, ids), mask.ndim - 1)
        if self.hindsight is not None:
            rows = self.hindsight.relabel(buffer, ids, rows, key_hindsight)
        return rows, mask

    def sample_batch(
        self, learner: AlgorithmLearner, buffer: Any, key: jax.Array, parent: Any
    ) -> Batch:
        """A batch for the algorithm, with rewards as `reward` has them; consumes `key`."""
        fields, mask = self.sample_rows(buffer, key)
        rew = self.reward(learner, parent, flat_rows(fields, mask))
        return self.make_batch(learner, parent, fields, mask, rew)

    def make_batch(
        self,
        learner: AlgorithmLearner,
        parent: Any,
        fields: dict[str, Any],
        mask: jax.Array,
        rew: jax.Array,
    ) -> Batch:
        """Features of sampled rows.

        Args:
            learner, parent: of this level and the one above.
            fields: of the rows, with the leading axes of `mask`.
            mask: rows that count, bool [B] or [T, B].
            rew: their rewards, flat.
        """
        del parent
        obs, condition = self.features(learner, fields["obs"], fields["level_input"])
        obs_next, condition_next = self.features(learner, fields["obs_next"], fields["level_input"])
        return Batch(
            obs=obs,
            condition=condition,
            act=fields["act"],
            rew=jnp.asarray(rew, jnp.float32).reshape(mask.shape),
            obs_next=obs_next,
            condition_next=condition_next,
            terminated=fields["terminated"],
            mask=mask,
        )


def flat_rows(fields: dict[str, Any], mask: jax.Array) -> Row:
    """Fields with the leading axes of `mask` as rows with one leading axis."""
    return as_rows(jax.tree.map(lambda x: x.reshape(mask.size, *x.shape[mask.ndim :]), fields))
