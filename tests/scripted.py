"""An environment with scripted episode lengths; `scripted_gym` has its twin."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

EPISODES = 64


def table(lengths):
    """Lengths [n][k] of each instance's episodes, repeated to EPISODES."""
    return np.stack([np.resize(np.asarray(row, np.int32), EPISODES) for row in lengths])


@struct.dataclass
class State(environment.EnvState):
    time: jax.Array
    index: jax.Array  # of the instance; -1 until `label` has set it
    episode: jax.Array
    position: jax.Array  # moved by actions


@struct.dataclass
class Params(environment.EnvParams):
    lengths: jax.Array = None  # [n, EPISODES]
    max_steps_in_episode: int = 10_000


class Scripted(environment.Environment[State, Params]):
    """Observation: instance, episode, time, position. Odd episodes terminate, even truncate."""

    @property
    def name(self):
        return "Scripted"

    @property
    def default_params(self):
        return Params(lengths=jnp.full((8, EPISODES), 5, jnp.int32))

    def action_space(self, params=None):
        return spaces.Box(-1, 1, (1,))

    def observation_space(self, params=None):
        return spaces.Box(-1e6, 1e6, (4,))

    def get_obs(self, state, params=None, key=None):
        parts = [state.index, state.episode, state.time, state.position]
        return jnp.stack([jnp.asarray(x, jnp.float32) for x in parts])

    def reset(self, key, params=None):
        zero = jnp.zeros((), jnp.int32)
        state = State(time=zero, index=zero - 1, episode=zero, position=jnp.zeros(()))
        return self.get_obs(state), state

    def step(self, key, state, action, params=None):
        position = 0.5 * state.position + action.reshape(())
        after = state.replace(time=state.time + 1, position=position)
        obs_next = self.get_obs(after)
        ended = after.time >= params.lengths[state.index, state.episode % EPISODES]
        odd = state.episode % 2 == 1
        fresh = after.replace(
            time=jnp.zeros_like(after.time),
            episode=after.episode + 1,
            position=jnp.zeros_like(position),
        )
        after = jax.tree.map(lambda a, b: jnp.where(ended, a, b), fresh, after)
        reward = 1.0 + state.index + 0.1 * obs_next[3]
        info = {"final_observation": obs_next, "is_success": obs_next[3] > 1.0}
        return self.get_obs(after), after, reward, ended & odd, ended & ~odd, info


def label(collector):
    """Tell the instances of a reset Collector who they are, as Gymnasium's know."""
    engine = collector._engine
    n = collector.n_env_instances
    index = jnp.arange(n, dtype=jnp.int32)
    env_state = engine.carry.env_state.replace(index=index)
    obs = jax.vmap(lambda s: Scripted().get_obs(s))(env_state)
    engine.carry = engine.carry.replace(env_state=env_state, obs=obs)
    engine.shared = True
