"""Following skills in a maze, and what is measured of them; subgoals; small learning."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrl_jax as lrl
from lrl_jax.envs import Maze2D
from lrl_jax.levels import Context, Neighbour, PlannerLevel, RandomLevel, SPlaTESLevel
from lrl_jax.levels.base import Control
from lrl_jax.levels.planner_level import WithInput
from lrl_jax.planners import CEM, ICEM
from lrl_jax.predictors import get_default_predictor_factory
from lrl_jax.spaces import Box, Discrete
from lrl_jax.training import Trainer, preset, with_settings
from lrl_jax.training.pictures import record_paths
from lrl_jax.training.skill_pictures import fan_of_skills, skill_curves, skills_picture
from lrl_jax.training.skill_tests import follow_skills, push_error, skill_quality

SEARCH = {"num_samples": 16, "n_iterations": 1, "elite_ratio": 0.25, "return_mode": "mean"}
PLANNER = {
    "optimizer": ICEM(3, **SEARCH),
    "hold": 1,
    "predictor_factory.partial_model.hidden": (16,),
    "predictor_factory.partial_rew_func.hidden": (16,),
    "n_updates": 2,
    "update_interval": 64,
    "batch_size": 16,
    "model_batch_size": 16,
    "warm_up_steps": 64,
    "no_planning_steps": 64,
}
SKILLS = {
    "algorithm.hidden": (16,),
    "n_updates": 2,
    "warm_up_steps": 64,
    "batch_size": 16,
    "n_alternatives": 4,
}
N = 24


def small(name, *levels, **config):
    """A preset with other settings of some levels, the highest first, and of the config."""
    named = enumerate(levels)
    changes = {f"levels.{i}.{path}": x for i, level in named for path, x in level.items()}
    config = {"n_env_instances": 8, "total_steps": 10_000, **config}
    return with_settings(preset(name), {**changes, **config})


def build(config, ticks=20):
    trainer = Trainer.build(config)
    carry = trainer.init(jax.random.key(0))
    carry, out = lrl.rollout(trainer.hierarchy, carry, ticks, learn=True, learn_interval=ticks)
    return trainer.hierarchy, trainer.env, trainer.params, carry.hierarchy, out.metrics


@pytest.fixture(scope="module")
def splates():
    return build(small("maze2d-medium-splates", PLANNER, SKILLS))


@pytest.fixture(scope="module")
def dads():
    planner = {**PLANNER, "optimizer": CEM(3, **SEARCH), "hold": 10}
    return build(small("maze2d-medium-dads", planner, SKILLS))


def drawn(env, n=N):
    starts = env.free_positions(jax.random.key(1), n)
    skills = jax.random.uniform(jax.random.key(2), (n, 2), minval=-1, maxval=1)
    return starts, skills


def test_free_positions():
    env = Maze2D(["#######", "#.....#", "#.....#", "#.....#", "#.....#", "#.....#", "#######"])
    points = env.free_positions(jax.random.key(0), 4000)
    assert points.min() >= 1.15 - 1e-6 and points.max() <= 5.85 + 1e-6
    np.testing.assert_allclose(points.mean(0), 3.5, atol=0.1)
    np.testing.assert_allclose(points.std(0), 4.7 / math.sqrt(12), atol=0.05)
    inner = env.free_positions(jax.random.key(0), 100, margin=1.5)
    assert np.abs(inner - 3.5).max() <= 2.5 - 1.65 + 1e-6
    with pytest.raises(ValueError, match="smaller margin"):
        env.free_positions(jax.random.key(0), 10, margin=3.0)


def test_skills_are_followed_as_the_level_acts(splates):
    """Against the level's own `act`, step by step, with its place in the skill."""
    hierarchy, env, params, state, _ = splates
    starts, skills = drawn(env)
    paths = follow_skills(hierarchy, state, starts, skills, jax.random.key(3))
    level, learner, parent = hierarchy.levels[1], state.levels[1].learner, state.levels[0].learner
    steps = state.n_total_env_steps.as_float()
    position = jnp.asarray(starts)

    def seen(p):
        return jnp.concatenate([p, p, p], -1)  # any goal: skills do not see it

    def act(p, z, start, k):
        control = Control(steps=k, start_obs=seen(start), above_obs=seen(p))
        above = Neighbour(parent, hierarchy.levels[0])
        ctx = Context(jax.random.key(0), steps, z, jnp.bool_(False), control, above, training=False)
        return level.act(learner, (), p, ctx).action

    for k in range(10):
        np.testing.assert_allclose(paths.positions[k], position, atol=1e-5)
        action = jax.vmap(act, (0, 0, 0, None))(position, skills, starts, jnp.int32(k))
        position = jax.vmap(env._move)(position, action)
    np.testing.assert_allclose(paths.positions[10], position, atol=1e-5)
    # The predicted ends are the model's.
    predictor = parent.predictor
    rollout = predictor.rollout_latent(
        parent.ps, jnp.asarray(starts), jnp.zeros((N, 2)), skills[:, None], key=None,
        deterministic=True, mode="heaviest", with_value=False, with_termination=False,
    )  # fmt: skip
    np.testing.assert_allclose(paths.predicted, rollout.state[:, 0, 0, 1], atol=1e-5)


def test_a_push_moves_the_body(splates):
    hierarchy, env, params, state, _ = splates
    starts, skills = drawn(env)
    by = jnp.full((N, 2), 0.05)
    args = (hierarchy, state, starts, skills, jax.random.key(3))
    plain, pushed = follow_skills(*args), follow_skills(*args, push=(4, by))
    np.testing.assert_array_equal(plain.positions[:5], pushed.positions[:5])
    np.testing.assert_allclose(pushed.positions[5] - plain.positions[5], by, atol=1e-6)
    np.testing.assert_array_equal(plain.predicted, pushed.predicted)


def test_a_skill_of_single_steps_is_held(dads):
    """Its model is iterated as often as it is held."""
    hierarchy, env, params, state, _ = dads
    starts, skills = drawn(env)
    args = (hierarchy, state, starts, skills, jax.random.key(3))
    ten, one = follow_skills(*args, n_steps=10), follow_skills(*args, n_steps=1)
    np.testing.assert_allclose(ten.positions[1], one.positions[1], atol=1e-6)
    again = follow_skills(*args[:2], ten.positions[4], skills, jax.random.key(3), n_steps=1)
    np.testing.assert_allclose(ten.positions[5], again.positions[1], atol=1e-5)
    assert float(jnp.abs(ten.predicted - one.predicted).max()) > 1e-3


def test_quality(splates, dads):
    for hierarchy, env, _, state, _ in (splates, dads):
        starts, _ = drawn(env)
        quality = skill_quality(hierarchy, state, starts, jax.random.key(4), n_steps=10)
        assert set(quality) == {"phi", "abs_delta_0", "abs_delta_1", "model_error"}
        assert float(quality["phi"]) <= math.log(101) and all(
            math.isfinite(float(x)) for x in quality.values()
        )
        # Reach and error are those of the same skills followed.
        keys = jax.random.split(jax.random.key(4), 3)
        skills = hierarchy.levels[1].draw_skills(keys[0], N)
        paths = follow_skills(hierarchy, state, starts, skills, keys[1], 10)
        delta = np.abs(paths.positions[-1] - paths.positions[0]).mean(0)
        np.testing.assert_allclose(quality["abs_delta_0"], delta[0], rtol=1e-5)
        np.testing.assert_allclose(quality["abs_delta_1"], delta[1], rtol=1e-5)
        pushed, free = push_error(hierarchy, state, jax.random.key(5), n_skills=16, margin=0.2)
        assert pushed > 0 and free > 0


def test_wrong_hierarchies_are_refused(splates):
    env, params = lrl.make("Maze2D-Medium-v0")
    flat = lrl.Hierarchy([RandomLevel()], env, params)
    state = flat.init(jax.random.key(0), 1)
    starts, skills = drawn(env)
    with pytest.raises(TypeError, match="none of the hierarchy's levels"):
        follow_skills(flat, state, starts, skills, jax.random.key(0))
    hierarchy, _, params, state, _ = splates
    with pytest.raises(ValueError, match="not a multiple"):
        follow_skills(hierarchy, state, starts, skills, jax.random.key(0), 15)
    flat_car = lrl.RandomHierarchy(lrl.make("MountainCarContinuous-v0")[0])
    with pytest.raises(TypeError, match="only in a Maze2D"):
        follow_skills(
            flat_car, flat_car.init(jax.random.key(0), 1), starts, skills, jax.random.key(0)
        )


def test_pictures(splates, tmp_path):
    hierarchy, env, params, state, _ = splates
    path = skills_picture(hierarchy, state, tmp_path / "skills.png", about="seed 0")
    assert path.stat().st_size > 10_000
    skills, colours = fan_of_skills(Box(-1, 1, (2,)))
    assert skills.shape == (48, 2) and np.abs(skills).max() == 1 and colours.shape == (48, 3)
    some, colours = fan_of_skills(Discrete(5))
    assert some.tolist() == list(range(5)) and len(colours) == 5
    names = ("skill_phi", "skill_abs_delta_0", "skill_abs_delta_1", "skill_model_error",
             "level0/standardizer_diag_0", "level0/standardizer_diag_1")  # fmt: skip
    rows = [{"env_steps": 10.0 * i, **{name: 0.1 * i for name in names}} for i in range(3)]
    assert skill_curves(rows, tmp_path / "curves.png", "title").stat().st_size > 5_000
    rows = [{**row, "skill_phi": math.nan} for row in rows]  # a run that diverged
    assert skill_curves(rows, tmp_path / "nan.png", "title").stat().st_size > 5_000


def test_plans_are_recorded_where_they_are_made(dads):
    """DADS decides every step; each action of a plan is held for ten."""
    hierarchy, env, params, state, _ = dads
    paths = record_paths(hierarchy, state, jax.random.key(0), 2, 30)
    np.testing.assert_array_equal(np.flatnonzero(paths.decided[:, 0]), [0, 10, 20])
    assert paths.plans.shape[:2] == (30, 2)


# ------------------------------------------------------------- frozen skills


def test_frozen_skills_act_as_in_eval(splates):
    """And learn no more, so that the model above sees what will be used."""
    hierarchy, _, _, state, _ = splates
    level = dataclasses.replace(hierarchy.levels[1], freeze_after_steps=100)  # of 160
    learner = state.levels[1].learner
    assert level.learn_until == 100
    above = Neighbour(state.levels[0].learner, hierarchy.levels[0])
    obs, z = jnp.array([1.5, 1.5]), jnp.array([0.3, -0.8])
    seen = jnp.array([1.5, 1.5, 0, 0, 1.5, 1.5])
    control = Control(steps=jnp.int32(0), start_obs=seen, above_obs=seen)

    def act(steps, key, training):
        explores = jnp.bool_(training)
        ctx = Context(key, jnp.float32(steps), z, explores, control, above, training=training)
        return level.act(learner, (), obs, ctx).action

    keys = jax.random.split(jax.random.key(0), 2)
    np.testing.assert_allclose(act(160, keys[0], True), act(160, keys[1], False))
    assert np.abs(act(99, keys[0], True) - act(99, keys[1], True)).max() > 1e-3


def test_state_noise_is_on_the_start_alone(splates):
    state = splates[3]
    parent = state.levels[0].learner
    predictor, ps = parent.predictor, parent.ps
    assert predictor.state_noise == 0.1
    batch = predictor.sample_model_batch(ps, state.levels[0].buffer, 4000, key=jax.random.key(0))
    noisy = predictor._disturbed(ps, batch, jax.random.key(1))
    for name in ("state_next", "act", "context", "terminated", "validity_mask"):
        np.testing.assert_array_equal(getattr(noisy, name), getattr(batch, name))
    noise = np.asarray(noisy.state - batch.state)
    np.testing.assert_allclose(noise.std(0), 0.1 * np.asarray(ps.sigma_d), rtol=0.1)
    # What changes are measured in does not see the noise.
    quiet = dataclasses.replace(predictor, state_noise=0.0)
    buffer = state.levels[0].buffer
    steps = (buffer, 2, 16, 64, 1000.0)
    after, (_, info) = predictor.learn(ps, *steps)
    twin, (_, twin_info) = quiet.learn(ps, *steps)
    np.testing.assert_array_equal(after.sigma_d, twin.sigma_d)
    np.testing.assert_array_equal(after.W, twin.W)
    assert info["mean_abs_delta"] == twin_info["mean_abs_delta"] and info["nll"] != twin_info["nll"]
    with pytest.raises(ValueError, match="state_noise"):
        dataclasses.replace(predictor, state_noise=-1.0)


# -------------------------------------------------------------------- subgoals


def test_subgoals_over_plans_over_skills():
    """Three levels; the middle one is paid for coming near what the highest asked for."""
    config = small(
        "maze2d-large-three-levels",
        {**PLANNER, "optimizer": ICEM(5, **SEARCH), "update_interval": 8},
        {**PLANNER, "control_interval": 2, "update_interval": 16},
        {**SKILLS, "update_interval": 160},
    )
    hierarchy, env, params, state, metrics = build(config, ticks=60)
    assert all(metrics[f"level{i}/n_updates"] > 0 for i in range(3))
    middle = hierarchy.levels[1]
    rows = lrl.buffers.stored(state.levels[1].buffer)
    assert rows["level_input"].shape[1:] == (2,)
    expected = -np.linalg.norm(rows["obs_next"] - rows["level_input"], axis=-1)
    learner, buffer = state.levels[1].learner, state.levels[1].buffer
    ctx = Context(None, jnp.float32(0))
    own = lrl.buffers.Replay(buffer).sample(jax.random.key(0), 32)
    reward = middle.reward(learner, own, ctx)
    np.testing.assert_allclose(
        reward, -np.linalg.norm(own.obs_next - own.level_input, axis=-1), rtol=1e-5
    )
    assert np.isin(np.asarray(reward).round(4), expected.round(4)).all()
    # The predictor sees the input beside the observation, and the same rewards.
    seen = WithInput(middle.level_input_space)(own, lrl.buffers.Replay(buffer))
    assert seen.obs_next.shape[1] == 4


def test_subgoal_planners_that_do_not_fit():
    env, params = lrl.make("Maze2D-Medium-v0")
    factory = get_default_predictor_factory(env, 0, "achieved_goal")
    settings = {"optimizer": CEM(2, 8, 0.5), "buffer_size": 64}
    subgoals = functools.partial(PlannerLevel, factory, pursues_input=True, **settings)
    with pytest.raises(TypeError, match="need a Box"):
        subgoals()
    space = Box(0, 8, (3,))
    skills = SPlaTESLevel("sac", buffer_size=64)
    for level, message in (
        (
            PlannerLevel(factory, pursues_input=True, level_input_space=space, **settings),
            "hand control back",
        ),
        (
            PlannerLevel(
                factory, pursues_input=True, level_input_space=space, control_interval=2, **settings
            ),
            "must agree",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            top = PlannerLevel(factory, **settings)
            lrl.Hierarchy([top, level, skills], env, params).init(jax.random.key(0), 2)


# -------------------------------------------------------------------- learning


def test_skills_become_distinguishable():
    """A small version of the study: in an empty maze phi rises and skills lead somewhere."""
    planner = {
        "optimizer": ICEM(2, **SEARCH),
        "predictor_factory.partial_model.hidden": (32, 32),
        "predictor_factory.partial_model.sb_start_duration": 6_000,
        "predictor_factory.partial_rew_func.hidden": (32, 32),
        "no_planning_steps": 1e9,
        "warm_up_steps": 1_000,
        "n_updates": 32,
        "model_batch_size": 256,
        "batch_size": 16,
    }
    skills = {
        "algorithm.hidden": (32, 32),
        "n_updates": 64,
        "update_interval": 320,
        "batch_size": 128,
        "n_alternatives": 16,
    }
    config = small(
        "maze2d-empty-splates", planner, skills, n_env_instances=32, total_steps=16_000,
        test_interval=16_000, test_episodes=1,
    )  # fmt: skip
    trainer = Trainer.build(config)
    carry = trainer.init(jax.random.key(0))
    starts = trainer.env.free_positions(jax.random.key(1), 256, margin=0.9)
    run = trainer.hierarchy.jitted(_quality)
    before = run(carry.hierarchy, starts)
    (n_rounds,) = config.chunks
    carry, _ = jax.jit(trainer.chunk, static_argnums=1)(carry, n_rounds)
    after = run(carry.hierarchy, starts)
    assert float(before["phi"]) < 0.3 and float(after["phi"]) > 0.9, (before, after)
    assert min(float(after["abs_delta_0"]), float(after["abs_delta_1"])) > 0.2


def _quality(hierarchy, state, starts):
    return skill_quality(hierarchy, state, starts, jax.random.key(2))
