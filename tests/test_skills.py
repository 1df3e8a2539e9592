"""Skill levels: rewards and targets against float64 NumPy, bookkeeping against plain Python."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrl_jax as lrl
from lrl_jax import buffers
from lrl_jax.algorithms import SAC, TDMPC2
from lrl_jax.algorithms.base import present_settings
from lrl_jax.buffers import Replay, rows
from lrl_jax.hierarchies import Counter
from lrl_jax.levels import (
    Context,
    DADSLevel,
    Neighbour,
    PlannerLevel,
    RandomLevel,
    SPlaTESLevel,
    splates_sac,
    splates_tdmpc2,
)
from lrl_jax.levels.learner_levels import as_batch
from lrl_jax.models import ProbabilisticEnsemble
from lrl_jax.nets import TwoHot
from lrl_jax.planners import CEM, MPPI, CategoricalCEM
from lrl_jax.predictors import IndexEncoder, PredictorFactory, RewardPredictor
from lrl_jax.spaces import Box, Discrete

K, B, L = 3, 24, 5
CLOSE = {"rtol": 1e-5, "atol": 1e-4}  # phi is a difference of logarithms: digits cancel
OBS = Box((-10,) * 4 + (-1,), (10,) * 4 + (1,), (5,))


TINY_TDMPC2 = TDMPC2(
    latent_dim=8,
    group_size=4,
    hidden=(8,),
    encoder_hidden=(8,),
    n_critics=2,
    gamma=0.9,
    two_hot=TwoHot(num_bins=11),
    planner=MPPI(horizon=2, num_samples=8, num_policy_samples=2, num_elites=3, n_iterations=2),
)


class Spaces:
    """Observations: state, context, and what only the skills see."""

    name = "spaces"
    default_params = None

    def observation_space(self, params):
        return OBS

    def action_space(self, params):
        return Box(-1, 1, (2,))


def factory(**model) -> PredictorFactory:
    return PredictorFactory(
        partial_model=ProbabilisticEnsemble(
            hidden=(8,), n_modes=3, learn_termination=False, **model
        ),
        partial_val_func=None,
        partial_rew_func=None,
        partial_encoder=IndexEncoder(state=(0, 2), context=(2, 4)),
        partial_predictor=RewardPredictor(learn_encoder=False, encoder_warm_up=0),
    )


@functools.cache
def hierarchy(kind: str, **settings: Any) -> lrl.Hierarchy:
    """A planner over skills; the skills see the last and the first entry, in that order."""
    common: dict[str, Any] = {
        "buffer_size": 512,
        "batch_size": B,
        "warm_up_steps": 0,
        "update_interval": 8,
        "n_alternatives": L,
    }
    optimizer: Any = CEM(horizon=2, num_samples=8, n_iterations=1, elite_ratio=0.5)
    sac = SAC(hidden=(8,), gamma=0.9, temperature=0.2)
    if kind == "dads-discrete":
        skills = DADSLevel(sac, skill_space=Discrete(4), **common, **settings)
        optimizer = CategoricalCEM(horizon=2, num_samples=8, n_iterations=1, elite_ratio=0.5)
    elif kind == "dads":
        skills = DADSLevel(sac, **common, **settings)
    elif kind == "splates-tdmpc2":
        skills = SPlaTESLevel(TINY_TDMPC2, control_interval=K, **common, **settings)
    else:
        skills = SPlaTESLevel(sac, control_interval=K, **common, **settings)
    planner = PlannerLevel(
        factory(n_models=2), optimizer=optimizer, warm_up_steps=30, buffer_size=512, n_updates=0
    )
    return lrl.Hierarchy(
        [planner, skills], Spaces(), None, [None, lambda obs: obs[jnp.array([4, 0])]]
    )


def transition(n: int, t: int, p_end: float = 0.1):
    rng = np.random.default_rng(t)
    obs = rng.uniform(-1, 1, (n, 5)).astype(np.float32)
    return obs, rng.normal(size=n).astype(np.float32), *(rng.random((2, n)) < p_end)


def play(h, state, ticks: int, learn: bool = False, p_end: float = 0.1):
    """Observations continue from tick to tick within an episode."""
    n = state.n_env_instances
    obs = transition(n, 10_000)[0]
    for t in range(ticks):
        obs_next, rew, terminated, truncated = transition(n, t, p_end)
        state, _ = h.get_action(state, obs)
        state = h.process_transition(state, obs_next, rew, terminated, truncated)
        done = terminated | truncated
        obs = np.where(done[:, None], transition(n, 20_000 + t)[0], obs_next)
        if learn:
            state, _ = h.learn(state)
    return state


@functools.cache
def played(kind: str, **settings):
    """State after some ticks, the parent with a standardizer and a unit that are not trivial."""
    h = hierarchy(kind, **settings)
    state = play(h, h.init(jax.random.key(0), 4), 40)
    parent = state.levels[0].learner
    ps = parent.ps
    running = ps.running_std.replace(second_moment=jnp.array([0.3, 0.8]))
    params = {**ps.params, "standardizer": jnp.array([[1.7, 0.2], [0.2, 0.9]])}
    parent = parent.replace(ps=ps.replace(params=params, running_std=running))
    learner = state.levels[1].learner
    if kind == "splates":
        backbone = learner.skills.backbone.replace(w=params["standardizer"])
        learner = learner.replace(skills=learner.skills.replace(backbone=backbone))
    return h.levels[1], learner, parent, Replay(state.levels[1].buffer)


def context(parent, key=None, steps=160):
    """What the skills may know where they learn."""
    return Context(key, jnp.float32(steps), above=Neighbour(parent, hierarchy("splates").levels[0]))


def double(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


# --- the model and the potential in NumPy ---------------------------------------------------------


def log_q(parent, start, skill, end, std):
    """log q(end | start, skill) of one row."""
    params = double(parent.ps.params["model"])
    w, unit = double(parent.ps.W), np.sqrt(double(parent.ps.running_std.second_moment))
    space = parent.predictor.model.action_space
    encoded = np.eye(space.n)[int(skill)] if isinstance(space, Discrete) else np.asarray(skill)
    x = np.concatenate([start, encoded])
    terms = []
    for m in range(2):
        p = jax.tree.map(lambda v, m=m: v[m], params)
        trunk = p["trunk"]["dense_0"]
        h = np.maximum(x @ trunk["kernel"] + trunk["bias"], 0)
        mean = (h @ p["mean"]["kernel"] + p["mean"]["bias"]).reshape(3, 2)
        logits = h @ p["logits"]["kernel"] + p["logits"]["bias"]
        weight = np.exp(logits) / np.exp(logits).sum()
        for j in range(3):
            z = (w @ (end - start) - w @ (unit * mean[j])) / std
            density = np.exp(-0.5 * z @ z) / (2 * np.pi * std**2)
            terms.append(weight[j] * density / 2)
    return math.log(sum(terms))


def phi(parent, skills, start, skill, end, std):
    """log of q over its mean over the skill and its alternatives, clipped."""
    others = list(np.asarray(skills.alternatives))
    if isinstance(parent.predictor.model.action_space, Discrete):
        others = [o for o in others if o != skill]
    own = log_q(parent, start, skill, end, std)
    mean = np.mean([math.exp(own)] + [math.exp(log_q(parent, start, o, end, std)) for o in others])
    return max(own - math.log(mean), float(skills.settings["least_potential"]))


def sampled(replay, n: int = B):
    found = replay.sample(jax.random.key(7), n)
    return found, double(found)


@pytest.mark.parametrize("kind", ["dads", "dads-discrete"])
def test_reward_of_dads(kind):
    level, learner, parent, replay = played(kind)
    found, plain = sampled(replay)
    got = level.raw_reward(learner.skills, parent, found)
    expected = [
        phi(
            parent,
            learner.skills,
            plain.control.above_obs[b, :2],
            np.asarray(found.level_input[b]),
            plain.control.above_obs_next[b, :2],
            1.0,
        )
        for b in range(B)
    ]
    np.testing.assert_allclose(got, expected, **CLOSE)
    most = 4 if kind == "dads-discrete" else L + 1
    assert np.all(got <= math.log(most)) and np.std(got) > 0.01


def test_potential_of_splates():
    level, learner, parent, replay = played("splates", reward_mode="last_step")
    found, plain = sampled(replay)
    got = level.raw_reward(learner.skills, parent, found)
    expected = [
        phi(
            parent,
            learner.skills,
            plain.control.start_obs[b, :2],
            plain.level_input[b],
            plain.control.above_obs_next[b, :2],
            0.5,
        )
        if plain.control.steps[b] == K - 1
        else 0.0
        for b in range(B)
    ]
    np.testing.assert_allclose(got, expected, **CLOSE)
    assert {0, K - 1} <= set(plain.control.steps.astype(int).tolist())


def test_differences_of_the_potential_telescope():
    level, learner, parent, replay = played("splates")
    assert level.reward_mode == "potential_difference"
    stored = buffers.stored(replay.buffer)
    found = rows.from_fields({k: jnp.asarray(v) for k, v in stored.items() if k != "instance"})
    got = np.asarray(level.raw_reward(learner.skills, parent, found))
    plain = double(found)
    control, whole = plain.control, 0
    for i in np.flatnonzero(control.steps == K - 1):
        if i < K - 1 or control.steps[i - K + 1] != 0 or i - K + 1 < 0:
            continue
        start, z = control.start_obs[i, :2], plain.level_input[i]
        args = (parent, learner.skills, start, z)
        ends = control.above_obs_next[i, :2], control.above_obs[i - K + 1, :2]
        difference = phi(*args, ends[0], 0.5) - phi(*args, ends[1], 0.5)
        np.testing.assert_allclose(got[i - K + 1 : i + 1].sum(), difference, **CLOSE)
        whole += 1
    assert whole > 5


def test_potentials_are_clipped_and_the_standard_deviation_may_follow_a_schedule():
    level, learner, parent, replay = played("splates")
    found, _ = sampled(replay)
    settings = {**learner.skills.settings, "least_potential": jnp.float32(-0.01)}
    low = learner.skills.replace(settings=settings)
    start, _ = parent.latent(found.control.start_obs)
    end, _ = parent.latent(found.control.above_obs_next)
    args = (parent, start, jnp.zeros((B, 2)), found.level_input, end)
    free, clipped = level.potential(learner.skills, *args)[0], level.potential(low, *args)[0]
    np.testing.assert_allclose(clipped, np.maximum(free, -0.01))
    assert np.min(free) < -0.01
    moving = dataclasses.replace(level, fixed_std=lambda steps: 1.0 - steps / 100)
    numbers = {k: x for k, x in learner.skills.settings.items() if k != "fixed_std"}
    skills = learner.skills.replace(settings=numbers, scheduled={"fixed_std": jnp.float32(1.0)})
    for before, std in ((learner.replace(skills=skills), 0.75), (learner, 0.5)):
        new, _ = moving.learn(before, replay, context(parent, jax.random.key(0), 25))
        assert float(present_settings(new.skills)["fixed_std"]) == std


# --- rows -----------------------------------------------------------------------------------------


def test_rows_know_their_skill_its_start_and_their_place():
    """Also behind episodes that cut a skill short: the next skill is whole."""
    h = hierarchy("splates")
    state = play(h, h.init(jax.random.key(0), 3), 60, p_end=0.08)
    stored = buffers.stored(state.levels[1].buffer)
    cut, seen = 0, 0
    for i in range(3):
        own = {k: v[stored["instance"] == i] for k, v in stored.items()}
        above, above_next = own["control/above_obs"], own["control/above_obs_next"]
        k = 0
        for t in range(len(own["control/steps"])):
            assert own["control/steps"][t] == k
            if k == 0:
                start, z = above[t], own["level_input"][t]
            np.testing.assert_array_equal(own["control/start_obs"][t], start)
            np.testing.assert_array_equal(own["level_input"][t], z)
            # The skill sees entries 4 and 0 of what the level above sees.
            np.testing.assert_array_equal(own["obs"][t], above[t][[4, 0]])
            np.testing.assert_array_equal(own["obs_next"][t], above_next[t][[4, 0]])
            done = own["terminated"][t] or own["truncated"][t]
            cut += done and k < K - 1
            k = 0 if done or k == K - 1 else k + 1
            seen += 1
    assert seen == 180 and cut > 5


# --- targets --------------------------------------------------------------------------------------


def batch_of(level, learner, parent, found, mask):
    """Features of rows, as the backbone's targets take them."""
    condition = level.row_conditions(learner, parent, found)
    return as_batch(learner, found, mask, condition, condition)


@pytest.mark.parametrize("averaged", [True, False])
def test_targets(averaged):
    """Within a skill, at its end, with terminations and truncations in either."""
    level, learner, parent, replay = played("splates", averaged_value=averaged, n_fresh_skills=2)
    found, plain = sampled(replay, 64)
    ends = plain.control.steps == K - 1
    kinds = set(zip(ends, plain.terminated > 0, plain.truncated > 0, strict=True))
    assert len({k[:2] for k in kinds}) == 4 and any(k[2] and not k[1] for k in kinds)
    rew = jnp.linspace(-1, 1, 64)
    batch = batch_of(level, learner, parent, found.replace(rew=rew), jnp.ones(64, bool))
    key = jax.random.key(5)
    got = splates_sac.targets(level, learner, parent, found, batch, key)
    key_skills, key_value = jax.random.split(key)
    fresh = np.asarray(level.draw_skills(key_skills, 2, 64), np.float64)
    noise = np.asarray(jax.random.normal(key_value, (128, 2)), np.float64).reshape(2, 64, 2)
    w = double(parent.ps.W)
    expected = []
    for b in range(64):
        values = []
        for m in range(2):
            end, start = plain.control.above_obs_next[b, :2], plain.control.start_obs[b, :2]
            z, k = plain.level_input[b], plain.control.steps[b] + 1
            if ends[b]:
                start, k = end, 0
                z = fresh[m, b] if averaged else z
            obs = plain.obs_next[b] / [1, 10]
            x = np.concatenate([obs, z, [2 * k / (K - 1) - 1], start / 10, (end - start) @ w])
            values.append(soft_value(learner.state, x, noise[m, b]))
        alive = 0.0 if plain.terminated[b] else 1.0
        expected.append(float(rew[b]) + 0.9 * alive * np.mean(values))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_targets_on_tdmpc2():
    """The head of the averaged value behind a skill's end, the critics within."""
    level, learner, parent, replay = played("splates-tdmpc2")
    # Heads start at zero: without this all values are zero.
    rng = np.random.default_rng(0)

    def moved(tree):
        shift = lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32)  # noqa: E731
        return jax.tree.map(shift, tree)

    heads = learner.skills.backbone.skill_value
    heads = heads.replace(params=moved(heads.params))
    backbone = learner.skills.backbone.replace(skill_value=heads)
    learner = learner.replace(
        state=learner.state.replace(target_q=moved(learner.state.target_q)),
        skills=learner.skills.replace(backbone=backbone),
    )
    found, mask = level.sample(replay, jax.random.key(3))
    rew = jnp.linspace(-1, 1, mask.size).reshape(mask.shape)
    batch = batch_of(level, learner, parent, found.replace(rew=rew), mask)
    key = jax.random.key(5)
    full, got = splates_tdmpc2.targets(level, learner, parent, found, batch, key)
    algorithm, state = level.algorithm, learner.state
    latents = algorithm.encode(state.params, full.obs_next)
    within = algorithm.td_targets(state, full, latents, jax.random.split(key)[1])
    start = found.control.above_obs_next[..., :2] / 10
    _, value = splates_tdmpc2.heads_of(algorithm, 2).value(heads.params, latents, start)
    behind = rew + 0.9 * np.where(found.terminated, 0, value)
    last = np.asarray(found.control.steps) == K - 1
    np.testing.assert_allclose(got, np.where(last, behind, within), rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(behind - within))[last].max() > 1e-3
    # Conditions: z, k, s_0; behind the end those of a fresh skill that starts there.
    k = np.asarray(full.condition_next[..., 2])
    np.testing.assert_allclose(
        k, np.where(last, -1, 2 * (found.control.steps + 1) / (K - 1) - 1), atol=1e-6
    )
    np.testing.assert_allclose(full.condition_next[..., 3:][last], start[last], atol=1e-6)


def soft_value(state, x, noise):
    def mlp(p, x):
        h = np.maximum(x @ p["dense_0"]["kernel"] + p["dense_0"]["bias"], 0)
        return h @ p["out"]["kernel"] + p["out"]["bias"]

    out = mlp(double(state.actor)["MLP_0"], x)
    mean, log_std = out[:2], -5 + 3.5 * (np.tanh(out[2:]) + 1)
    u = mean + np.exp(log_std) * noise
    normal = -0.5 * noise**2 - 0.5 * np.log(2 * np.pi) - log_std
    log_prob = (normal - np.log(1 - np.tanh(u) ** 2)).sum()
    critics = double(state.target_critics)
    q = [
        mlp(jax.tree.map(lambda p, i=i: p[i], critics), np.concatenate([x, np.tanh(u)]))[0]
        for i in range(2)
    ]
    return min(q) - float(state.temperature) * log_prob


# --- learning -------------------------------------------------------------------------------------


def test_rewards_are_standardized_by_running_moments():
    level, learner, parent, replay = played("splates", centre=True, offset=1.0)
    new, metrics = level.learn(learner, replay, context(parent, jax.random.key(2)))
    # The first batch initialises the moments: its rewards have mean 1 and std 1.
    key_rows, key_skills, *_ = jax.random.split(jax.random.key(2), 4)
    found, _ = level.sample(replay, key_rows)
    moved = learner.skills.replace(alternatives=level._alternatives(key_skills))
    raw = np.asarray(level.raw_reward(moved, parent, found), np.float64)
    moments = new.skills.moments
    np.testing.assert_allclose(moments.mean, raw.mean(), **CLOSE)
    np.testing.assert_allclose(moments.std, raw.std(), rtol=1e-4)
    rew = level.reward(new, found, context(parent))
    np.testing.assert_allclose(np.mean(rew), 1.0, atol=1e-4)
    np.testing.assert_allclose(np.std(rew), 1.0, rtol=1e-4)
    mask = jnp.arange(4) < 2
    later = moments.update(jnp.array([1.0, 3.0, 99.0, 99.0]), mask, jnp.float32(0.1))
    np.testing.assert_allclose(later.mean, 0.9 * raw.mean() + 0.1 * 2.0, rtol=1e-4)
    assert np.isfinite(metrics["critic_loss"])


@pytest.mark.parametrize("kind", ["splates", "splates-tdmpc2", "dads", "dads-discrete"])
def test_a_hierarchy_of_skills_learns_and_evaluates(kind, tmp_path):
    h = hierarchy(kind)
    first = h.init(jax.random.key(0), 4)
    state = play(h, first, 20, learn=True)
    # Everything learned moves, the heads of the averaged value included.
    parts = [lambda learner: learner.state]
    if kind == "splates-tdmpc2":
        parts.append(lambda learner: learner.skills.backbone.skill_value)
    for part in parts:
        old, new = (jax.tree.leaves(part(s.levels[1].learner)) for s in (first, state))
        assert any(not np.array_equal(a, b) for a, b in zip(old, new, strict=True))
        assert all(np.isfinite(x).all() for x in new)
    obs = transition(4, 1)[0]
    _, a = h.eval().get_action(state, obs)
    _, b = h.eval().get_action(state, obs)
    np.testing.assert_array_equal(a, b)
    h.save(state, tmp_path / "skills")
    loaded = h.load(tmp_path / "skills")
    _, c = h.eval().get_action(loaded, obs)
    np.testing.assert_array_equal(a, c)


def test_relabelled_rows_get_skills_of_the_prior():
    level, _, _, replay = played("splates", relabel_skills=0.5)
    plain = dataclasses.replace(level, relabel_skills=0.0)
    key = jax.random.key(3)
    level, plain = (dataclasses.replace(x, batch_size=400) for x in (level, plain))
    new, _ = level.sample(replay, key, level.relabel)
    stored = {tuple(z) for z in buffers.stored(replay.buffer)["level_input"].tolist()}
    fresh = np.array([tuple(z) not in stored for z in np.asarray(new.level_input).tolist()])
    assert 0.4 < fresh.mean() < 0.6
    same, _ = plain.sample(replay, key, plain.relabel)
    assert all(tuple(z) in stored for z in np.asarray(same.level_input).tolist())


def test_frozen_skills_learn_no_more():
    h = hierarchy("splates", freeze_after_steps=100.0)
    state = play(h, h.init(jax.random.key(0), 4), 10)
    for steps, learns in ((99, True), (100, False)):
        total = Counter.zero().add(steps)
        _, metrics = h.learn(state.replace(n_total_env_steps=total))
        assert (int(metrics["level1/n_updates"]) > 0) == learns


@pytest.mark.parametrize(
    "cls, settings, error, words",
    [
        (SPlaTESLevel, {"algorithm": "ppo"}, ValueError, "backbone"),
        (SPlaTESLevel, {"algorithm": 3}, TypeError, "must be a SAC or a TDMPC2"),
        (SPlaTESLevel, {"skill_space": Box(-math.inf, math.inf, (2,))}, TypeError, "bounded"),
        (DADSLevel, {"skill_space": Discrete(1)}, ValueError, "two|2"),
        (SPlaTESLevel, {"n_alternatives": 0}, ValueError, "n_alternatives"),
        (SPlaTESLevel, {"fixed_std": 0.0}, ValueError, "fixed_std"),
        (SPlaTESLevel, {"least_potential": 1.0}, ValueError, "least_potential"),
        (SPlaTESLevel, {"momentum": 2.0}, ValueError, "momentum"),
        (SPlaTESLevel, {"relabel_skills": -0.1}, ValueError, "relabel_skills"),
        (SPlaTESLevel, {"freeze_after_steps": -1}, ValueError, "freeze_after_steps"),
        (SPlaTESLevel, {"reward_mode": "sum"}, ValueError, "reward_mode"),
        (SPlaTESLevel, {"n_fresh_skills": 0}, ValueError, "n_fresh_skills"),
        (SPlaTESLevel, {"control_interval": None}, ValueError, "control_interval"),
        (DADSLevel, {"control_interval": 10}, ValueError, "single steps"),
    ],
)
def test_bad_settings(cls, settings, error, words):
    with pytest.raises(error, match=words):
        cls(**{"algorithm": "sac", **settings})


def test_skills_need_a_level_above_with_a_model():
    with pytest.raises(ValueError, match="no level is above"):
        lrl.Hierarchy([SPlaTESLevel("sac")], Spaces())
    for skills in (SPlaTESLevel("sac"), DADSLevel("sac", warm_up_steps=0)):
        with pytest.raises(TypeError, match="PlannerLevel.*model"):
            lrl.Hierarchy([RandomLevel(), skills], Spaces())


def test_a_planner_refuses_what_its_predictor_and_buffer_do_not_allow():
    optimizer = CEM(horizon=2, num_samples=8, n_iterations=1, elite_ratio=0.5)
    planner = PlannerLevel(factory(), optimizer=optimizer, use_value=True)
    with pytest.raises(ValueError, match="partial_val_func"):
        lrl.Hierarchy([planner], Spaces()).init(jax.random.key(0), 2)
    long = dataclasses.replace(factory(), partial_predictor=RewardPredictor(k_steps=9))
    planner = PlannerLevel(long, optimizer=optimizer, buffer_size=8)
    with pytest.raises(ValueError, match="9 rows"):
        lrl.Hierarchy([planner], Spaces()).init(jax.random.key(0), 2)
