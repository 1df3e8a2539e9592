"""The seeds' API pages, row by row: what is called in their words, and what then happens.

Each row is a call and a part of the answer: an error that names the way, or a value.
"""

import dataclasses
import functools
import threading

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripted import Scripted
from scripted_gym import ScriptedGym

import lrl_jax as lrl
from lrl_jax import buffers, predictors, spaces
from lrl_jax.collectors.ray_pool import checked_config
from lrl_jax.envs import goal_indices
from lrl_jax.levels import ActionRepeatLevel, ConstantLevel, PlannerLevel, RandomLevel
from lrl_jax.models import ProbabilisticEnsemble
from lrl_jax.planners import CEM
from lrl_jax.predictors import (
    IndexEncoder,
    PredictorFactory,
    RewardPredictor,
    StaticPredictor,
)

KEY = jax.random.key(0)
ENV = Scripted()
AGENT = lrl.RandomHierarchy(ENV)


def gym_env(index=0):
    return ScriptedGym(index, [2, 3])


@functools.cache
def collector():
    return lrl.Collector(AGENT, ENV, n_env_instances=2)


def async_collector(**arguments):
    fns = [gym_env, functools.partial(gym_env, 1)]
    return lrl.AsyncCollector(lrl.RandomHierarchy(gym_env()), fns, **arguments)


def encode(obs):
    return obs[..., :2], obs[..., 2:]


def q_function(state, context, action):
    return state[..., 0] + action[..., 0]


def value_function(state, context):
    return state[..., 0]


def predictor(val_func=value_function, kind=RewardPredictor, encoder=encode, **more):
    model = ProbabilisticEnsemble(2, 1, spaces.Box(-1, 1, (1,)), hidden=(4,), n_models=1)
    return kind(model, val_func, None, encoder, 2, 1, **more)


ENCODER = IndexEncoder(state=(0, 2), context=(2, 3))


def factory(**parts):
    names = ("model", "val_func", "rew_func", "encoder", "predictor")
    usual = dict(
        zip(names, (ProbabilisticEnsemble(), None, None, ENCODER, RewardPredictor()), strict=True)
    )
    built = PredictorFactory(*(usual | parts).values(), latent_state_dim=2, context_dim=1)
    return built((3,), spaces.Box(-1, 1, (1,)))


REFUSED = {  # page and row: what is called, and words of the answer
    "000 test_hierarchy": (
        lambda: collector().test(0, test_hierarchy=AGENT, n_steps=2),
        "use test_state=",
    ),
    "000 test(t, hierarchy)": (lambda: collector().test(0, AGENT, 2), "test_state must be a Hier"),
    "001 maps third": (lambda: lrl.Hierarchy([RandomLevel()], ENV, [None]), "env_obs_maps="),
    "001 one map third": (lambda: lrl.Hierarchy([RandomLevel()], ENV, abs), "env_obs_maps="),
    "001 keep_params": (
        lambda: lrl.Hierarchy([RandomLevel()], ENV, keep_params=True),
        r"learners=\[...\]",
    ),
    "001 maps of a batch": (
        lambda: lrl.Hierarchy([RandomLevel()], ENV, env_obs_maps=[lambda obs: obs[:, :2]]),
        "Maps take one instance",
    ),
    "001 env_params on Gymnasium": (
        lambda: lrl.Hierarchy([RandomLevel()], gym_env(), 3),
        "for gymnax environments",
    ),
    "001 env_params junk": (lambda: lrl.Hierarchy([RandomLevel()], ENV, 3), "lacks .*lengths"),
    "001 env_params of another": (
        lambda: lrl.RandomHierarchy(ENV, env_params=lrl.make("CartPole-v1")[1]),
        "lacks .*lengths",
    ),
    "001 n of a JAX environment": (lambda: AGENT.init(KEY), "n_env_instances"),
    "002 policy": (lambda: lrl.Collector(policy=AGENT, env=ENV), "use hierarchy="),
    "002 buffer third": (lambda: lrl.Collector(AGENT, ENV, 100), "buffer="),
    "002 n_step": (lambda: collector().collect(n_step=3), "use n_total_steps="),
    "002 n_episode": (lambda: collector().collect(n_episode=3), "use n_episodes="),
    "002 render without a renderer": (lambda: collector().collect(2, render=0.0), "render"),
    "002 reset(reset_buffer)": (lambda: collector().reset(False), "use reset_buffer=False"),
    "002 async policy": (lambda: lrl.AsyncCollector(policy=AGENT, env=[]), "use hierarchy="),
    "002 async test_env": (lambda: async_collector(test_env=gym_env()), "only Collector tests"),
    "002 async checkpoints": (lambda: async_collector(checkpoint_dir="x"), r"call save\(path\)"),
    "002 async n": (lambda: async_collector(n_env_instances=2), "list of functions"),
    "002 async env_params": (lambda: async_collector(env_params=1), "use Collector"),
    "003 object_store_memory": (
        lambda: checked_config({"object_store_memory": 2**31}),
        r"ray.init\(object_store_memory=...\)",
    ),
    "004 device by place": (
        lambda: StaticPredictor(None, None, None, encode, 2, 1, "cpu"),
        "positional",
    ),
    "004 Predictor is abstract": (lambda: predictor(kind=predictors.Predictor), "abstract"),
    "004 fixed_std of rows": (lambda: log_prob(np.ones(3)), "each of the 2 dimensions"),
    "004 fixed_std of zero": (lambda: log_prob([1.0, 0.0]), "positive"),
    "004 Q-function": (lambda: predictor(q_function), r"called as V\(s, c\)"),
    "004 encoder without a shape": (
        lambda: predictor(encoder=predictors.LinearEncoder(None, 2, 1)).init(KEY),
        "mapped_env_obs_shape",
    ),
    "004 positional partials": (
        lambda: factory(model=lambda dim, context, space: None),
        r"keywords alone, of \[.*'latent_state_dim'",
    ),
}


@pytest.mark.parametrize("row", REFUSED)
def test_answers_with_the_call_to_use(row):
    call, words = REFUSED[row]
    with pytest.raises((TypeError, ValueError), match=words):
        call()


def log_prob(std):
    static = predictor(kind=StaticPredictor)
    ps = static.init(KEY)
    s, c, a, s2 = (jnp.full((3, d), x) for d, x in ((2, 0.1), (1, 0.0), (1, 0.2), (2, 0.5)))
    return static.get_standardized_log_prob(ps, s, c, a, s2, std)[0]


def test_fixed_std_can_be_of_each_dimension():
    """004: where batch and dimensions agree in size it is still of dimensions."""
    np.testing.assert_allclose(log_prob([0.5, 0.5]), log_prob(0.5), rtol=1e-5)
    one, other = log_prob([0.5, 2.0]), log_prob([2.0, 0.5])
    assert one.shape == (3,) and not np.allclose(one, other)


class Writer:
    def __init__(self):
        self.scalars = []

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def of(self, name):
        return [(value, step) for n, value, step in self.scalars if n == name]


def rows(n=8):
    def field(shape, dtype="float32"):
        return jax.ShapeDtypeStruct(shape, dtype)

    fields = {"obs": field((3,)), "act": field((1,)), "rew": field(()), "obs_next": field((3,))}
    fields |= {name: field((), bool) for name in ("terminated", "truncated")}
    buffer = buffers.create(fields, 1, n)
    for t in range(n):
        row = {k: np.full((1, *f.shape), 0.1 * t, f.dtype) for k, f in fields.items()}
        row |= {name: np.zeros(1, bool) for name in ("terminated", "truncated")}
        buffer = buffers.add(buffer, row)
    return buffer


def test_predictors_write_every_log_interval_calls():
    """004: and the calls of the warm up learn and say nothing."""
    writer = Writer()
    own = predictor(encoder_warm_up=3, writer=writer, log_interval=2)
    ps, buffer = own.init(KEY), rows()
    for call in range(1, 9):
        before = ps.params
        ps, (loss, info) = own.learn(ps, buffer, 1, 4, 4, 10 * call)
        same = jax.tree.map(np.array_equal, before, ps.params)
        if call <= 3:
            assert loss == 0.0 and info == {} and all(jax.tree.leaves(same))
        else:
            assert loss != 0 and not all(jax.tree.leaves(same))
    assert [step for _, step in writer.of("predictor/model_loss")] == [40, 60, 80]
    assert writer.of("predictor/loss")[-1][0] == pytest.approx(float(loss))
    # Where the call is traced there are no scalars to write, and zeros for nothing learned.
    again = jax.jit(lambda ps: own.learn(ps, buffer, 1, 4, 4, 0)[1])
    loss, info = again(own.init(KEY))
    assert loss == 0.0 and not any(jax.tree.leaves(info)) and len(writer.of("predictor/loss")) == 3


@pytest.mark.parametrize("one_by_one", [False, True])
def test_collectors_write_what_a_planner_s_predictor_wants_written(one_by_one):
    writer = Writer()
    parts = predictors.get_default_predictor_factory(MAZE, 0)
    own = RewardPredictor(learn_encoder=False, encoder_warm_up=0, writer=writer, log_interval=3)
    parts = dataclasses.replace(
        parts,
        partial_model=ProbabilisticEnsemble(hidden=(4,)),
        partial_val_func=None,
        partial_rew_func=None,
        partial_predictor=own,
    )
    planner = PlannerLevel(
        parts, CEM(horizon=1, num_samples=4, elite_ratio=0.5), buffer_size=64, only_noise=True
    )
    planner = dataclasses.replace(planner, batch_size=4, model_batch_size=4, update_interval=2)
    agent = lrl.Hierarchy([planner], MAZE)
    learning = lrl.Collector(agent, n_env_instances=2)
    looked = {"post_step_callback": lambda t, obs: None} if one_by_one else {}
    learning.collect(n_steps=4, learn=True, **looked)  # an update per tick
    learning.collect(n_steps=4, learn=True, **looked)
    assert [step for _, step in writer.of("predictor/model_loss")] == [6, 12]


MAZE = lrl.make("Maze2D-Simple-v0")[0]


def test_statistics_of_interim_tests():
    """000: mean, last and last five, of returns and rewards; beside them `stats.tests`."""
    agent = lrl.Hierarchy([ConstantLevel([0.1])], *lrl.make("Pendulum-v1"))
    params = agent.env.default_params.replace(max_steps_in_episode=2)
    testing = lrl.Collector(agent, n_env_instances=1, env_params=params, test_env_params=params)
    assert "mean_test_return" not in testing.collect(1)
    stats = testing.collect(2, test_interval=1, n_test_steps=2)
    assert stats["last_test_return"] == stats.tests[-1][1]["test_return"]
    assert stats["last_test_reward"] == pytest.approx(stats["last_test_return"] / 2)
    assert stats["mean_test_success"] is stats["last_5_test_success_at_end"] is None
    told = [{**stats.tests[0][1], "test_return": x} for x in (1.0, None, 2.0, 3.0, 4.0, 5.0)]
    stats = dataclasses.replace(stats, tests=tuple(enumerate(told)))
    assert stats["mean_test_return"] == 3.0 and stats["last_5_test_return"] == 3.5
    assert stats["last_test_return"] == 5.0


def test_words_of_evaluation_are_the_same_everywhere():
    """`return`, `length`, `success`, `success_at_end`; LayeredRL's are aliases."""
    writer = Writer()
    agent = lrl.Hierarchy([ConstantLevel([0.0, 0.0])], MAZE)
    params = agent.env.default_params.replace(max_steps_in_episode=3)
    testing = lrl.Collector(agent, n_env_instances=2, env_params=params, writer=writer)
    stats = testing.collect(3, log_interval=1)
    for old, new in (("return", "return"), ("episode_length", "length")):
        assert stats[f"mean_{old}"] == stats[new] is not None
    assert stats["success_rate"] == stats["success"] and stats["length"] == 3
    assert stats["success_at_end"] <= stats["success"]
    result = testing.test(0, agent.get_copy(testing.state), 3)
    assert result["test_success_in_ep"] == result["test_success"]
    assert result["test_success_frac"] == result["test_success_at_end"]
    assert result["test_length"] == 3
    names = {name for name, *_ in writer.scalars}
    assert names >= {"collect/return", "collect/success_at_end", "test/test_success_at_end"}
    assert not names & {"collect/success_rate", "test/test_success_frac", "collect/mean_return"}


def test_an_environment_s_own_number_of_instances():
    """001"""
    vector = gymnasium.vector.SyncVectorEnv([gym_env] * 3)
    for env, n in ((vector, 3), (gym_env(), 1)):
        assert lrl.RandomHierarchy(env).init(KEY).n_env_instances == n


def test_evaluation_cannot_learn():
    carry = lrl.init_carry(AGENT.eval(), KEY, 2)
    with pytest.raises(ValueError, match=r"eval mode.*hierarchy.train\(\)"):
        lrl.rollout(AGENT.eval(), carry, 3, learn=True)
    with pytest.raises(ValueError, match=r"eval mode.*hierarchy.train\(\)"):
        lrl.Collector(AGENT.eval(), ENV).collect(3, learn=True)


def test_parameters_of_the_hierarchy_are_the_default():
    """000"""
    params = ENV.default_params
    params = params.replace(lengths=jnp.full_like(params.lengths, 2))
    agent = lrl.Hierarchy([RandomLevel(), ActionRepeatLevel(2)], ENV, params)
    assert lrl.Collector(agent).env_params is params


def test_stored_by_learning_alone():
    """000: collect without learn neither stores nor counts."""
    agent = lrl.Hierarchy([RandomLevel(buffer_size=8)], ENV)
    collecting = lrl.Collector(agent)
    collecting.collect(2)
    assert int(collecting.state.n_total_env_steps) == 0
    assert not len(buffers.stored(collecting.state.levels[0].buffer)["rew"])


def test_async_collectors_take_a_device():
    """002: as Collector does."""
    with async_collector(device="cpu") as collecting:
        assert collecting.device == jax.devices("cpu")[0]
        assert collecting.collect(n_episodes=2).n_collected_episodes == 2


def test_asynchronous_environments_are_shown_in_their_own_thread():
    drawn = []

    class Drawn(ScriptedGym):
        def render(self):
            drawn.append((self.index, self.time, threading.get_ident()))
            return super().render()

        def step(self, action):
            self.thread = threading.get_ident()
            return super().step(action)

    envs = [Drawn(i, [2, 3], render_mode="rgb_array") for i in range(2)]
    with lrl.AsyncCollector(AGENT, [functools.partial(lambda e: e, e) for e in envs]) as collector:
        collector.collect(n_total_steps=10, render=0.0)
        shown = list(drawn)
        collector.collect(n_total_steps=4)
    # Every step of the first, those that end episodes too, before the reset.
    assert [time for _, time, _ in shown] == [1, 2, 1, 2, 3] and drawn == shown
    assert {(index, thread) for index, _, thread in shown} == {(0, envs[0].thread)}


@pytest.mark.parametrize("where", ["hierarchy", "collector", "test", "loop"])
def test_parameters_of_another_environment_are_refused(where):
    maze, params = lrl.make("Maze2D-Simple-v0")
    other = lrl.make("CartPole-v1")[1]
    agent = lrl.RandomHierarchy(maze, env_params=params)
    calls = {
        "hierarchy": lambda wrong: lrl.RandomHierarchy(maze, env_params=wrong),
        "collector": lambda wrong: lrl.Collector(agent, env_params=wrong),
        "test": lambda wrong: lrl.Collector(agent, test_env_params=wrong),
        "loop": lambda wrong: lrl.init_carry(agent, KEY, 2, env_params=wrong),
    }
    for wrong in (other, 3):
        with pytest.raises(TypeError, match="env.default_params, a Maze2DParams"):
            calls[where](wrong)


@pytest.mark.parametrize("steps", [-1, 0, 2.5, "5", True, None])
def test_parameters_given_to_make_are_checked(steps):
    for env_id in ("CartPole-v1", "Maze2D-Simple-v0"):
        with pytest.raises((ValueError, TypeError), match="max_steps_in_episode must be"):
            lrl.make(env_id, max_steps_in_episode=steps)
    assert lrl.make("Pendulum-v1", g=9)[1].g == 9.0
    assert lrl.make("Pendulum-v1", g=jnp.array([1.0, 5.0]))[1].g.shape == (2,)


def test_what_is_not_a_device_is_refused():
    for call in (
        lambda: lrl.Collector(AGENT, ENV, None, abs),
        lambda: lrl.RandomHierarchy(ENV, abs),
    ):
        with pytest.raises(TypeError, match='device must be a string such as "cpu"'):
            call()
    with pytest.raises(TypeError):  # Tianshou's third is the buffer
        lrl.AsyncCollector(AGENT, [gym_env], 2)


def test_goals_under_wrappers_that_change_what_is_observed_are_not_guessed():
    wrappers = gymnasium.wrappers

    class Goal(gymnasium.Env):
        box = gymnasium.spaces.Box(-9, 9, (2,), np.float32)
        observation_space = gymnasium.spaces.Dict({"desired_goal": box, "achieved_goal": box})
        action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    flat = wrappers.FlattenObservation(Goal())
    assert goal_indices(flat) == {"achieved_goal": (0, 2), "desired_goal": (2, 4)}
    assert goal_indices(wrappers.TimeLimit(flat, 9)) == goal_indices(flat)
    box = gymnasium.spaces.Box(-9, 9, (4,), np.float32)
    turned = wrappers.TransformObservation(flat, lambda obs: obs[::-1], box)
    low, high = np.float32(-1), np.float32(1)
    for env in (
        turned,
        wrappers.RescaleObservation(flat, low, high),
        wrappers.TimeLimit(turned, 9),
    ):
        with pytest.raises(ValueError, match="not goal based"):
            goal_indices(env)
