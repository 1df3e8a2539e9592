"""Everything of a hierarchy that changes, as pytrees."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from lrl_jax import buffers, devices, struct
from lrl_jax.exact import Counter
from lrl_jax.randomness import Stream


class LevelState(struct.Node):
    """State of one level over n instances.

    Attributes:
        learner: what the instances share.
        memory: what each keeps within an episode, leaves [n, ...].
        buffer: replay, None where the level stores no rows.
        obs: mapped observation of the latest decision, [n, *obs_shape].
        action: latest decision, [n, *action shape].
        store: what the decision keeps with the row, a dict of [n, ...].
        greedy: whether the decision asked for greedy behaviour below, bool [n]; None where the
            level never does.
        cum_reward: reward since then, float32 [n].
        signals: the hierarchy's signals since then, a dict of float32 [n].
        elapsed_env_steps: environment steps since then, int32 [n].
        n_steps_in_control: rows since control came from above, int32 [n].
        owed: rows not yet paid for by updates, int32 []; environment steps on-policy.
        learn_from, learn_until: environment steps between which updates are made, float32 [].
        above_obs: the latest decision's observation as the level above sees it, [n, *its
            obs_shape], with needs=("control",); else None.
        first_child: rows ever closed by the level below at the latest decision, uint32 [n], with
            needs=("children",); else None.
        discounted_return: of the rows before in the episode, float32 [n], with needs=("return",);
            else None.
    """

    learner: Any
    memory: Any
    buffer: Any
    obs: jax.Array
    action: jax.Array
    store: dict[str, Any]
    greedy: jax.Array | None
    cum_reward: jax.Array
    signals: dict[str, jax.Array]
    elapsed_env_steps: jax.Array
    n_steps_in_control: jax.Array
    owed: jax.Array
    learn_from: jax.Array
    learn_until: jax.Array
    above_obs: jax.Array | None = None
    first_child: jax.Array | None = None
    discounted_return: jax.Array | None = None


class HierarchyState(struct.Node):
    """State of a hierarchy over n instances.

    Attributes:
        levels: one LevelState a level, the highest first.
        active_level: level that decides next, int32 [n].
        n_total_env_steps: environment steps in train mode, summed over instances.
        stream: random stream of the decisions and updates.
    """

    levels: tuple[LevelState, ...]
    active_level: jax.Array
    n_total_env_steps: Counter
    stream: Stream

    @property
    def n_env_instances(self) -> int:
        """Number of instances, n."""
        return self.active_level.shape[-1]


def specs(state: HierarchyState) -> Any:
    """How a state is split over the devices of a mesh; see `lrl_jax.devices`."""
    row = devices.by_instance(state.n_env_instances)

    def of_level(level: LevelState) -> Any:
        split = jax.tree.map(lambda _: row, level.replace(learner=None, buffer=None))
        return split.replace(
            learner=devices.of_learner(level.learner),
            buffer=None if level.buffer is None else buffers.specs(level.buffer),
            owed=P(),
            learn_from=P(),
            learn_until=P(),
        )

    return state.replace(
        levels=tuple(of_level(level) for level in state.levels),
        active_level=row,
        n_total_env_steps=jax.tree.map(lambda _: P(), state.n_total_env_steps),
        stream=jax.tree.map(lambda _: P(), state.stream),
    )
