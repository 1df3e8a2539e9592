"""Option-critic and HIRO, written with what users have, learn probes with known answers."""

import ast
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import user_levels
from flax import struct
from gymnax.environments import environment, spaces
from user_levels import Manager, Options, PolicyOverOptions, Worker

import lrl_jax as lrl
from lrl_jax.levels import Neighbour


@struct.dataclass
class CueState(environment.EnvState):
    time: jax.Array
    cue: jax.Array


class Cue(environment.Environment):
    """1 for each action that is the cue's; the cue changes after three of six steps."""

    default_params = environment.EnvParams(max_steps_in_episode=100)

    def get_obs(self, state, params=None, key=None):
        return jnp.stack([state.time, state.cue]).astype(jnp.float32)

    def reset_env(self, key, params):
        state = CueState(time=jnp.int32(0), cue=jax.random.randint(key, (), 0, 2))
        return self.get_obs(state), state

    def step_env(self, key, state, action, params):
        rew = (action == state.cue).astype(jnp.float32)
        cue = jnp.where(state.time == 2, 1 - state.cue, state.cue)
        state = CueState(time=state.time + 1, cue=cue)
        return self.get_obs(state), state, rew, state.time >= 6, {}

    def action_space(self, params=None):
        return spaces.Discrete(2)

    def observation_space(self, params=None):
        return spaces.Box(0, 6, (2,))


@struct.dataclass
class LineState(environment.EnvState):
    time: jax.Array
    x: jax.Array


class Line(environment.Environment):
    """A point on a line that should be at 0.5: minus the distance, for 20 steps."""

    default_params = environment.EnvParams(max_steps_in_episode=20)

    def get_obs(self, state, params=None, key=None):
        return state.x[None]

    def reset_env(self, key, params):
        state = LineState(time=jnp.int32(0), x=jax.random.uniform(key, minval=-1.0))
        return self.get_obs(state), state

    def step_env(self, key, state, action, params):
        state = LineState(time=state.time + 1, x=jnp.clip(state.x + 0.2 * action[0], -1, 1))
        return self.get_obs(state), state, -jnp.abs(state.x - 0.5), jnp.bool_(False), {}

    def action_space(self, params=None):
        return spaces.Box(-1, 1, (1,))

    def observation_space(self, params=None):
        return spaces.Box(-1, 1, (1,))


def code_lines(*objects) -> int:
    """Lines of code, without blank ones, comments and docstrings."""
    total = 0
    for thing in objects:
        tree = ast.parse(inspect.getsource(thing))
        doc = [n.body[0] for n in ast.walk(tree) if getattr(n, "body", None) and _is_doc(n)]
        skipped = {i for d in doc for i in range(d.lineno, d.end_lineno + 1)}
        lines = inspect.getsource(thing).splitlines()
        total += sum(
            bool(x.strip()) and not x.strip().startswith("#") and i not in skipped
            for i, x in enumerate(lines, 1)
        )
    return total


def _is_doc(node) -> bool:
    first = node.body[0] if isinstance(node.body, list) else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)


def test_they_are_short_and_use_what_is_exported():
    option_critic = (
        user_levels.place,
        user_levels.value_on_arrival,
        PolicyOverOptions,
        Options,
    )
    assert code_lines(*option_critic) <= 80
    assert code_lines(user_levels.batch_of, Worker, Manager) <= 100
    names = ast.walk(ast.parse(inspect.getsource(user_levels)))
    assert not [n for n in names if isinstance(n, ast.Attribute) and n.attr.startswith("_")]


def test_option_critic_ends_its_options_where_the_cue_changes():
    hierarchy = lrl.Hierarchy([PolicyOverOptions(), Options()], Cue())
    collector = lrl.Collector(hierarchy, Cue(), n_env_instances=16)
    collector.reset(seed=0)
    collector.collect(n_steps=1500, learn=True)
    state = collector.state
    # Six of six steps with the cue's action; the first three and the last three are an option each.
    np.testing.assert_allclose(state.levels[0].learner["q"][0].max(-1), 6.0, atol=0.3)
    ends = jax.nn.sigmoid(state.levels[1].learner["ends"])
    tester = lrl.Collector(hierarchy, Cue(), n_env_instances=16, state=state)
    stats = tester.collect(n_episodes=32)
    assert stats.returns.tolist() == [6.0] * 32
    assert (ends[:, 3] > 0.5).all() and (ends[:, [1, 2, 4, 5]] < 0.5).all(), ends


def test_hiro_goes_where_the_reward_is():
    hierarchy = lrl.Hierarchy([Manager(), Worker()], Line())
    collector = lrl.Collector(hierarchy, Line(), n_env_instances=8)
    collector.reset(seed=0)
    collector.collect(n_steps=700, learn=True)
    tester = lrl.Collector(hierarchy, Line(), n_env_instances=16, state=None)
    tester.state = hierarchy.set_n_env_instances(collector.state, 16)
    _, batch = tester.collect(n_steps=20, record_transitions=True)
    assert np.abs(batch.obs_next[-1] - 0.5).mean() < 0.12
    # The worker does as it is told: a goal that is within reach is reached.
    assert tester.collect(n_episodes=16)["mean_return"] > -5.5


def test_hiro_corrects_goals_to_those_that_explain_what_the_worker_did():
    """Of goals far apart the one whose actions were taken is found, whatever had been told."""
    worker = Worker(control_interval=3)
    hierarchy = lrl.Hierarchy([Manager(n_candidates=64), worker], Line())
    collector = lrl.Collector(hierarchy, Line(), n_env_instances=4)
    collector.collect(n_steps=60, learn=True)
    state = collector.state

    class Follows:
        """Half of what is left to go, exactly."""

        dim, control_interval = 1, 3
        goal = staticmethod(lambda start, told, obs: start[..., :1] + told - obs[..., :1])

        class algorithm:
            @staticmethod
            def act(state, memory, obs, goal, key, explores):
                return (2.5 * goal).clip(-1, 1), memory

    replay = lrl.buffers.Replay(state.levels[0].buffer, state.levels[1].buffer)
    rows = replay.sample(jax.random.key(0), 32)
    follows = Neighbour(learner=(), level=Follows())
    corrected = Manager(n_candidates=256).corrected(replay, follows, rows, jax.random.key(1))
    steps, mask = replay.children(rows, 3)
    assert bool(mask.any())

    def error(told):
        goal = Follows.goal(rows.obs, told, steps.obs)
        return jnp.where(mask[..., None], ((2.5 * goal).clip(-1, 1) - steps.act) ** 2, 0).sum(
            (0, 2)
        )

    # By brute force over a fine grid nothing is much better.
    grid = jnp.linspace(-1, 1, 401)[:, None, None]
    best = jnp.stack([error(g) for g in grid]).min(0)
    assert (error(corrected.act) <= best + 0.05).all()
    assert float(error(corrected.act).sum()) < float(error(rows.act).sum())


@pytest.mark.parametrize("levels", [(PolicyOverOptions(needs=()), Options())])
def test_children_must_be_asked_for(levels):
    hierarchy = lrl.Hierarchy(levels, Cue())
    state = hierarchy.init(jax.random.key(0), 4)
    with pytest.raises(ValueError, match=r'needs=\("children",\)'):
        hierarchy.learn(state)
