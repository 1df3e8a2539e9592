"""What the level protocol promises to levels of a user's own."""

import dataclasses
import math
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import environment, spaces

import lrl_jax as lrl
from lrl_jax.algorithms import DQN, SAC
from lrl_jax.levels import ActionRepeatLevel, Decision, DQNLevel, Level, RandomLevel, SACLevel
from lrl_jax.models import ProbabilisticEnsemble
from lrl_jax.predictors import get_default_predictor_factory
from lrl_jax.spaces import Box, Discrete
from lrl_jax.training import TrainConfig

MAZE, PARAMS = lrl.make("Maze2D-Medium-v0")


def made(name="Own", base=Level, **members) -> Any:
    """A level of a user's own; plain values become fields."""
    fields = {k: v for k, v in members.items() if not callable(v)}
    annotations = {k: Any for k in fields}
    cls = type(name, (base,), {**members, "__annotations__": annotations})
    return dataclasses.dataclass(frozen=True)(cls)()


def still(self, learner, memory, obs, ctx):
    """Stands still in a maze."""
    return Decision(jnp.zeros(2), memory)


def run(levels, n_steps=8, n=4, learn=True, env=MAZE, params=None, **settings):
    hierarchy = lrl.Hierarchy(levels, env, params, **settings)
    carry = lrl.init_carry(hierarchy, jax.random.key(0), n)
    carry, out = lrl.rollout(hierarchy, carry, n_steps=n_steps, learn=learn)
    return carry.hierarchy, out


def test_rewards_are_those_of_the_levels_reward_wherever_rows_come_from():
    def learn(self, learner, replay, ctx):
        rows = {
            "sampled": replay.sample(ctx.key, 8).rew.mean(),
            "pieces": replay.pieces(ctx.key, 8, 2)[0].rew.mean(),
            "raw": replay.sample(ctx.key, 8, rewarded=False).rew.mean(),
        }
        return learner, rows

    level = made(
        act=still,
        reward=lambda self, learner, rows, ctx: jnp.full(rows.rew.shape, 100.0),
        learn=learn,
        buffer_size=64,
        n_updates=1,
    )
    _, out = run([level])
    assert out.metrics["level0/sampled"] == out.metrics["level0/pieces"] == 100.0
    assert -1 < out.metrics["level0/raw"] < 0


def test_the_hidden_state_before_the_decision_is_what_is_stored():
    def act(self, learner, memory, obs, ctx):
        return Decision(jnp.zeros(2), memory + 1, {"hidden": memory})

    level = made(act=act, init_memory=lambda self, learner: jnp.float32(0), buffer_size=64)
    state, _ = run([level], 3, n=1)
    assert lrl.buffers.stored(state.levels[0].buffer)["hidden"].tolist() == [0, 1, 2]


def test_fields_known_at_the_end_of_a_row_are_stored_beside():
    def after(self, learner, memory, row, ctx):
        return memory, jnp.bool_(False), {"twice": 2 * row.rew, "again": row["first_guess"]}

    def act(self, learner, memory, obs, ctx):
        return Decision(jnp.zeros(2), memory, {"first_guess": obs[0]})

    level = made(act=act, after_transition=after, buffer_size=64)
    rows = lrl.buffers.stored(run([level], 3)[0].levels[0].buffer)
    np.testing.assert_array_equal(rows["twice"], 2 * rows["rew"])
    np.testing.assert_array_equal(rows["again"], rows["obs"][:, 0])


# ------------------------------------------------------------------- on-policy


@dataclasses.dataclass(frozen=True)
class OnPolicy(Level):
    """Counts its updates, and looks at the versions of what it gets."""

    rollout_length: int = 16
    n_updates: int = 1
    control_interval: int | None = None
    input: Any = None
    early: bool = False

    def input_space(self):
        return self.input

    def init_learner(self, key, spec):
        return {"version": jnp.int32(0), "space": spec.action_space.low_array}

    def act(self, learner, memory, obs, ctx):
        return Decision(jnp.zeros(2), memory, {"version": learner["version"]})

    def learn(self, learner, replay, ctx):
        rows, mask = replay.fresh()
        done_before = mask & (rows["version"] < learner["version"])
        # Rows that began under the version before are still open at an update: one an instance.
        metrics = {"rows": mask.sum(), "older": done_before.sum(), "version": learner["version"]}
        return {**learner, "version": learner["version"] + 1}, metrics


def test_only_rows_since_the_last_update_are_fresh():
    hierarchy = lrl.Hierarchy([OnPolicy(rollout_length=8), ActionRepeatLevel(3)], MAZE)
    carry = lrl.init_carry(hierarchy, jax.random.key(0), 5)
    for k in range(3):
        carry, out = lrl.rollout(hierarchy, carry, n_steps=24, learn=True)
        assert out.metrics["level0/n_updates"] == 1
        assert out.metrics["level0/version"] == k
        assert out.metrics["level0/rows"] == 8 * 5 and out.metrics["level0/older"] == 0
        assert out.metrics["level0/dropped_rows"] == 0
    assert hierarchy.learn_ticks == 24


def test_rows_that_began_under_an_older_policy_say_so():
    """Updates fall due every 8 ticks of nominal length 2, but rows last 3: one stays open."""

    @dataclasses.dataclass(frozen=True)
    class Holds(Level):
        control_interval: int = 2

        def input_space(self):
            return Box(-1, 1, (2,))

        def init_memory(self, learner):
            return jnp.int32(0)

        def act(self, learner, memory, obs, ctx):
            return Decision(ctx.level_input, memory)

        def after_transition(self, learner, memory, row, ctx):
            return memory, row.n_steps_in_control >= 3

    hierarchy = lrl.Hierarchy([OnPolicy(rollout_length=4), Holds()], MAZE)
    carry = lrl.init_carry(hierarchy, jax.random.key(0), 2)
    rows, older = [], []
    for _ in range(3):
        carry, out = lrl.rollout(hierarchy, carry, n_steps=8, learn=True)
        rows.append(int(out.metrics["level0/rows"]))
        older.append(int(out.metrics["level0/older"]))
    # Ticks 1-8 close rows at 3, 6; 9-16 at 9, 12, 15; 17-24 at 18, 21, 24; two instances.
    assert rows == [4, 6, 6] and older == [0, 2, 2]


def test_rows_beyond_the_rollout_are_dropped_oldest_first_and_counted():
    hierarchy = lrl.Hierarchy([OnPolicy(rollout_length=4)], MAZE)
    carry = lrl.init_carry(hierarchy, jax.random.key(0), 3)
    carry, _ = lrl.rollout(hierarchy, carry, n_steps=6)  # nobody learns for 6 ticks
    state, metrics = hierarchy.learn(carry.hierarchy)
    assert metrics["level0/rows"] == 12 and metrics["level0/dropped_rows"] == 6
    assert int(state.levels[0].owed) == 0


def test_updates_of_vmapped_seeds_fall_due_together():
    def train(key):
        carry = lrl.init_carry(hierarchy, key, 3)
        return lrl.rollout(hierarchy, carry, n_steps=40, learn=True)[1].metrics

    hierarchy = lrl.Hierarchy([OnPolicy(rollout_length=8), RandomEnds()], MAZE)
    many = jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(0), 3))
    assert many["level0/n_updates"].tolist() == [5, 5, 5]
    assert len(set(many["level0/rows"].tolist())) > 1  # what the seeds have seen differs


@dataclasses.dataclass(frozen=True)
class RandomEnds(Level):
    """Ends with a coin in training, never in evaluation."""

    def input_space(self):
        return Box(-1, 1, (2,))

    def act(self, learner, memory, obs, ctx):
        return Decision(ctx.level_input, memory)

    def after_transition(self, learner, memory, row, ctx):
        return memory, ctx.training & jax.random.bernoulli(ctx.key, 0.5)


def test_learned_ends_have_a_key_and_the_mode():
    hierarchy = lrl.Hierarchy([RandomLevel(buffer_size=1000), RandomEnds()], MAZE)
    state, _ = run(hierarchy.levels, 200, n=4, learn=False)
    lengths = lrl.buffers.stored(state.levels[0].buffer)["elapsed_env_steps"]
    counts = np.bincount(lengths, minlength=4) / len(lengths)
    assert abs(counts[1] - 0.5) < 0.1 and abs(counts[2] - 0.25) < 0.1
    evaluated = lrl.init_carry(hierarchy.eval(), jax.random.key(0), 2)
    evaluated, _ = lrl.rollout(hierarchy.eval(), evaluated, n_steps=50)
    assert evaluated.hierarchy.levels[0].elapsed_env_steps.tolist() == [50, 50]


# -------------------------------------------------------------- semi-MDP discounts


@struct.dataclass
class CorridorState(environment.EnvState):
    time: jax.Array
    x: jax.Array


class Corridor(environment.Environment):
    """1 for reaching 10 from 0; action 1 goes five steps at once."""

    default_params = environment.EnvParams(max_steps_in_episode=30)

    def reset_env(self, key, params):
        return jnp.zeros(1), CorridorState(jnp.int32(0), jnp.float32(0))

    def step_env(self, key, state, action, params):
        x = jnp.minimum(state.x + jnp.where(action == 1, 5.0, 1.0), 10.0)
        reached = x >= 10
        new = CorridorState(state.time + 1, x)
        return x[None], new, reached.astype(jnp.float32), reached, {}

    def action_space(self, params=None):
        return spaces.Discrete(2)

    def observation_space(self, params=None):
        return spaces.Box(0.0, 10.0, (1,), jnp.float32)


@dataclasses.dataclass(frozen=True)
class WalkOrJump(Level):
    """Option 0 walks to the end of the episode, option 1 is one jump."""

    def input_space(self):
        return Discrete(2)

    def act(self, learner, memory, obs, ctx):
        return Decision(ctx.level_input, memory)

    def after_transition(self, learner, memory, row, ctx):
        return memory, row.level_input == 1


@pytest.mark.parametrize("smdp", [False, True])
def test_smdp_discount_ranks_options_of_different_length(smdp):
    """Values at the start: the walk is worth 0.9^9 = 0.387, two jumps 0.9."""
    dqn = DQN(hidden=(32,), gamma=0.9, learning_rate=3e-3, smdp_discount=smdp)
    top = DQNLevel(dqn, 4000, batch_size=64, warm_up_steps=400, reward_discount="gamma")
    state, _ = run([top, WalkOrJump()], 1200, n=8, env=Corridor())
    learner = state.levels[0].learner
    q = dqn.q_values(learner.state.params, Discrete(2), learner.see(jnp.zeros(1)))
    # One decision walks all the way: its reward is discounted inside the row.
    assert abs(float(q[0]) - 0.9**9) < 0.06
    assert abs(float(q[1]) - 0.9) < 0.06
    rows = lrl.buffers.stored(state.levels[0].buffer)
    walked = (rows["act"] == 0) & (rows["obs"][:, 0] == 0) & rows["terminated"]
    np.testing.assert_allclose(rows["rew"][walked], 0.9**9, rtol=1e-5)


@pytest.mark.parametrize("smdp", [False, True])
def test_batches_discount_by_the_steps_that_rows_took(smdp):
    batch = lrl.algorithms.Batch(
        *[jnp.zeros((3, 1))] * 2,
        act=jnp.zeros(3),
        rew=jnp.zeros(3),
        obs_next=jnp.zeros((3, 1)),
        condition_next=jnp.zeros((3, 1)),
        terminated=jnp.array([False, False, True]),
        elapsed_env_steps=jnp.array([1, 10, 3]),
        mask=jnp.ones(3, bool),
    )
    expected = [0.9, 0.9**10 if smdp else 0.9, 0.0]
    np.testing.assert_allclose(batch.discount(jnp.float32(0.9), smdp), expected, rtol=1e-6)


# ------------------------------------------------------------------------ images


class Pixels(type(gymnax.make("Pendulum-v1")[0])):
    """Pendulum seen in images of one grey, which is the step's number."""

    def observation_space(self, params=None):
        return spaces.Box(0, 255, (16, 16, 4), jnp.uint8)

    def get_obs(self, state, params=None, key=None):
        return jnp.broadcast_to(jnp.asarray(state.time, jnp.uint8), (16, 16, 4))


def test_images_pass_in_their_own_dtype_to_levels_and_rows():
    seen = []

    def act(self, learner, memory, obs, ctx):
        seen.append((obs.shape, obs.dtype.name))
        return Decision(jnp.zeros(1), memory)

    state, _ = run([made(act=act, buffer_size=400)], 30, n=2, env=Pixels())
    assert set(seen) == {((16, 16, 4), "uint8")}
    rows = lrl.buffers.stored(state.levels[0].buffer)
    assert rows["obs"].dtype == np.uint8 and rows["obs"].shape == (60, 16, 16, 4)
    np.testing.assert_array_equal(rows["obs"][:30, 0, 0, 0], np.arange(30))
    np.testing.assert_array_equal(rows["obs_next"][:30, 0, 0, 0], np.arange(1, 31))


def test_learners_take_images_as_features():
    sac = SACLevel(SAC(hidden=(8,)), 400, batch_size=4, warm_up_steps=0)
    _, out = run([sac], 4, n=2, env=Pixels())
    assert np.isfinite(out.metrics["level0/critic_loss"])


# ----------------------------------------------------------------------- signals


def test_signals_are_taken_from_info_and_must_be_there():
    def learn(self, learner, replay, ctx):
        rows = replay.sample(ctx.key, 16)
        return learner, {"health": rows.signals["is_success"].mean()}

    level = made(act=still, learn=learn, buffer_size=64, n_updates=1)
    _, out = run([level], signals=("is_success",))
    assert out.metrics["level0/health"] == 0.0
    with pytest.raises((ValueError, KeyError), match="health"):
        run([level], signals=("health",))
    hierarchy = lrl.Hierarchy([level], MAZE, signals=("cost",))
    state, _ = hierarchy.get_action(hierarchy.init(jax.random.key(0), 2), jnp.zeros((2, 6)))
    step = (jnp.zeros((2, 6)), jnp.zeros(2), jnp.zeros(2, bool), jnp.zeros(2, bool))
    with pytest.raises(ValueError, match="missing \\['cost'\\]"):
        hierarchy.process_transition(state, *step)
    with pytest.raises(ValueError, match="undeclared \\['more'\\]"):
        hierarchy.process_transition(
            state, *step, signals={"cost": jnp.zeros(2), "more": jnp.zeros(2)}
        )


# ----------------------------------------------------------- mistakes are named


def drafts(**changes):
    def draft(self, learner, memory, obs, ctx):
        parts = {"decision": Decision(jnp.zeros(2), memory), "memory": memory, "needs": True}
        parts |= changes
        return parts["decision"], parts["memory"], jnp.bool_(parts["needs"])

    return draft


MISTAKES = {
    "no Decision": (dict(act=lambda self, *a: jnp.zeros(2)), r"level 0 \(Own\)\.act.*Decision"),
    "old act": (
        dict(act=lambda self, learner, memory, obs, level_input, key: None),
        r"Own\.act must take \(learner, memory, obs, ctx\)",
    ),
    "wrong shape": (
        dict(act=lambda self, l, m, o, c: Decision(jnp.zeros(3), m)),
        r"level 0 \(Own\)\.act: the action returned shape \(3,\), expected \(2,\)",
    ),
    "scalar": (
        dict(act=lambda self, l, m, o, c: Decision(jnp.zeros(()), m)),
        r"\.act: the action returned shape \(\)",
    ),
    "integers in a Box": (
        dict(act=lambda self, l, m, o, c: Decision(jnp.zeros(2, int), m)),
        r"\.act returned an action of dtype int32",
    ),
    "another memory": (
        dict(
            init_memory=lambda self, l: {"a": jnp.zeros(2)},
            act=lambda self, l, m, o, c: Decision(jnp.zeros(2), {"b": jnp.zeros(2)}),
        ),
        r"\.act returned memory of another structure",
    ),
    "memory of another shape": (
        dict(
            init_memory=lambda self, l: jnp.zeros(2),
            act=lambda self, l, m, o, c: Decision(jnp.zeros(2), jnp.zeros(3)),
        ),
        r"\.act returned memory of another structure.*\(2,\).* became .*\(3,\)",
    ),
    "a row's own name": (
        dict(act=lambda self, l, m, o, c: Decision(jnp.zeros(2), m, {"rew": jnp.zeros(())})),
        r"\.act stores \['rew'\], which rows have already",
    ),
    "one answer": (
        dict(act=still, after_transition=lambda self, l, m, r, c: m),
        r"\.after_transition returned tuple|\.after_transition returned",
    ),
    "the same name twice": (
        dict(
            act=lambda self, l, m, o, c: Decision(jnp.zeros(2), m, {"x": jnp.zeros(())}),
            after_transition=lambda self, l, m, r, c: (m, jnp.bool_(0), {"x": jnp.zeros(())}),
        ),
        r"\.after_transition stores \['x'\], which act has stored already",
    ),
    "a draft of another shape": (
        dict(act=still, draft=drafts(decision=Decision(jnp.zeros(3), ()))),
        r"\.draft: the action returned shape \(3,\)",
    ),
    "a draft that stores more": (
        dict(act=still, draft=drafts(decision=Decision(jnp.zeros(2), (), {"x": jnp.zeros(())}))),
        r"\.draft stores \{'x'",
    ),
    "no buffer": (dict(act=still, n_updates=1), r"level 0 \(Own\) has n_updates=1.*buffer_size"),
    "both kinds of buffer": (
        dict(act=still, rollout_length=4, buffer_size=4),
        r"rollout_length=4 and buffer_size=4",
    ),
    "memory of another type": (
        dict(
            init_memory=lambda self, l: jnp.int32(0),
            act=lambda self, l, m, o, c: Decision(jnp.zeros(2), m + 0.5),
        ),
        r"\.act returned memory of another structure.*int32.*float32",
    ),
    "a draft that stores other shapes": (
        dict(
            act=lambda self, l, m, o, c: Decision(jnp.zeros(2), m, {"x": jnp.zeros(2)}),
            draft=drafts(decision=Decision(jnp.zeros(2), (), {"x": jnp.zeros(())})),
        ),
        r"\.draft stores",
    ),
    "a nested store": (
        dict(act=lambda self, l, m, o, c: Decision(jnp.zeros(2), m, {"x": {"y": jnp.zeros(2)}})),
        r"\.act stores \['x'\], which are not plain arrays",
    ),
    "a hand-back that is not a bool": (
        dict(act=still, after_transition=lambda self, l, m, r, c: (m, jnp.float32(0.3))),
        r"\.after_transition: hand_back has dtype float32",
    ),
    "needs as text": (dict(act=still, needs="control"), "tuple of names"),
    "learn_from as text": (dict(act=still, learn_from="a"), "learn_from must be"),
    "unknown needs": (dict(act=still, needs=("friends",)), r"\['friends'\]"),
    "no neighbour": (dict(act=still, needs=("control",)), "needs a level above"),
    "no children": (dict(act=still, needs=("children",)), "no level is below"),
    "another discount": (dict(act=still, reward_discount="lambda"), '"gamma"'),
    "a hook that is gone": (
        dict(act=still, row_fields=lambda self, memory, row: {}),
        r"Own\.row_fields is of an earlier protocol: use Decision",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named_with_level_and_method(name):
    members, message = MISTAKES[name]
    with pytest.raises((TypeError, ValueError), match=message):
        lrl.Hierarchy([made(**members)], MAZE).init(jax.random.key(0), 4)


@pytest.mark.parametrize(
    ("learn", "message"),
    [
        (lambda self, learner, replay, ctx: learner, r"level 0 \(Own\)\.learn returned"),
        (
            lambda self, learner, replay, ctx: ({"v": learner["w"]}, {}),
            r"\.learn returned learner of another structure",
        ),
        (
            lambda self, learner, replay, ctx: (learner, {"loss": jnp.zeros(3)}),
            r"\.learn: metric 'loss' returned shape \(3,\)",
        ),
    ],
)
def test_mistakes_in_learn_are_named(learn, message):
    level = made(
        act=still,
        learn=learn,
        init_learner=lambda self, key, spec: {"w": jnp.zeros(2)},
        buffer_size=64,
        n_updates=1,
    )
    with pytest.raises((TypeError, ValueError), match=message):
        run([level])


def test_a_reward_of_another_shape_is_named():
    level = made(
        act=still,
        reward=lambda self, learner, rows, ctx: jnp.zeros(()),
        learn=lambda self, learner, replay, ctx: (replay.sample(ctx.key, 4).rew.mean() * 0, {}),
        init_learner=lambda self, key, spec: jnp.zeros(()),
        buffer_size=64,
        n_updates=1,
    )
    with pytest.raises(ValueError, match=r"Own\.reward returned shape \(\), expected \(4,\)"):
        run([level])


def test_too_few_children_are_refused_at_construction():
    top = made("Top", act=still, needs=("children",), rollout_length=8, n_updates=1)
    with pytest.raises(ValueError, match="stores no rows"):
        lrl.Hierarchy([top, ActionRepeatLevel(4)], MAZE)
    below = made(
        "Below",
        act=lambda self, l, m, o, ctx: Decision(ctx.level_input, m),
        input_space=lambda self: Box(-1, 1, (2,)),
        control_interval=4,
        rollout_length=31,
    )
    with pytest.raises(ValueError, match="from 31 to 32 or more"):
        lrl.Hierarchy([top, below], MAZE)


# -------------------------------------------------------------------- whole numbers

FACTORY = get_default_predictor_factory(MAZE, 0)
COUNTS = {
    "control_interval": lambda v: SACLevel(SAC(), control_interval=v),
    "ActionRepeatLevel": ActionRepeatLevel,
    "n_env_instances": lambda v: lrl.Hierarchy([RandomLevel()], MAZE).init(jax.random.key(0), v),
    "n_models": lambda v: ProbabilisticEnsemble(2, 2, Box(-1, 1, (2,)), n_models=v),
    "k_steps": lambda v: dataclasses.replace(FACTORY((6,), Box(-1, 1, (2,))), k_steps=v),
    "TrainConfig": lambda v: TrainConfig((RandomLevel(),), n_env_instances=v),
    "make_mesh": lrl.make_mesh,
    "buffer_size": lambda v: lrl.Hierarchy([RandomLevel(buffer_size=v)], MAZE),
}


@pytest.mark.parametrize("name", COUNTS)
def test_whole_numbers_are_treated_alike_everywhere(name):
    COUNTS[name](1.0)
    for wrong in (2.5, "2", True, math.nan):
        with pytest.raises(ValueError, match="whole number"):
            COUNTS[name](wrong)


# --------------------------------------------------------------------- one more thing


def test_greedy_behaviour_below_suppresses_noise_and_warm_up():
    """A level that tests its subgoals sees what the level below does without exploring."""

    def act(self, learner, memory, obs, ctx):
        return Decision(jnp.zeros(2), memory, {}, greedy_below=obs[0] > 0)

    def actions(greedy, env_steps=0):
        below = SACLevel(
            SAC(hidden=(8,)),
            warm_up_steps=10,
            level_input_space=Box(-1, 1, (2,)),
            control_interval=5,
        )
        hierarchy = lrl.Hierarchy([made(act=act), below], MAZE)
        state = hierarchy.init(jax.random.key(0), 6)
        obs = jnp.full((6, 6), 1.0 if greedy else -1.0)
        return hierarchy.get_action(state, obs)[1], hierarchy.eval().get_action(state, obs)[1]

    trained, evaluated = actions(greedy=True)
    np.testing.assert_allclose(trained, evaluated, atol=1e-6)
    trained, evaluated = actions(greedy=False)
    assert np.abs(np.asarray(trained - evaluated)).min(axis=0).max() > 1e-3


def test_check_level_passes_what_is_right():
    below = SACLevel(
        SAC(hidden=(8,)),
        400,
        batch_size=8,
        warm_up_steps=0,
        level_input_space=Box(-1, 1, (2,)),
        control_interval=3,
    )
    assert lrl.testing.check_level(below, MAZE).n_levels == 2


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            dict(act=lambda self, l, m, o, c: Decision(jnp.full(2, np.random.rand()), m)),
            "differs from an eager one|traced",
        ),
        (
            dict(
                act=still,
                init_learner=lambda self, key, spec: {"w": jnp.zeros(())},
                learn=lambda self, l, r, c: (l, {"loss": l["w"] / 0}),
                buffer_size=64,
                n_updates=1,
            ),
            "not finite",
        ),
        (dict(act=still, buffer_size=400, n_updates=1, update_interval=500), "made no update"),
    ],
)
def test_check_level_finds_what_is_wrong(members, message):
    with pytest.raises(AssertionError, match=message):
        lrl.testing.check_level(made(**members), MAZE)


# ---------------------------------------------------------- faults that a review found


def test_levels_with_children_can_be_evaluated():
    top = made("Top", act=still, needs=("children",), buffer_size=64)
    hierarchy = lrl.Hierarchy([top, made_holder(buffer_size=640)], MAZE)
    state = hierarchy.init(jax.random.key(0), 2)
    episodes = lrl.evaluate(hierarchy, state, jax.random.key(0), 3, max_steps=5)
    assert episodes.length.tolist() == [5, 5, 5]


def made_holder(**members):
    return made(
        "Holder",
        act=lambda self, l, m, o, ctx: Decision(ctx.level_input, m),
        input_space=lambda self: Box(-1, 1, (2,)),
        control_interval=4,
        **members,
    )


def test_on_policy_rows_survive_a_change_of_instances_but_old_ones_do_not():
    hierarchy = lrl.Hierarchy([OnPolicy(rollout_length=8)], MAZE)
    carry = lrl.init_carry(hierarchy, jax.random.key(0), 2)
    carry, _ = lrl.rollout(hierarchy, carry, n_steps=8, learn=True)
    carry, _ = lrl.rollout(hierarchy, carry, n_steps=4)
    for n, kept in ((2, 8), (4, 8), (1, 8)):
        state = hierarchy.set_n_env_instances(hierarchy.unaligned(carry.hierarchy), n)
        buffer = state.levels[0].buffer
        assert int(buffer.fresh.sum()) == int(buffer.size.sum()) == kept
        # An update falls due after the four ticks that were left, whatever n is.
        again = lrl.init_carry(hierarchy, jax.random.key(1), n, state)
        again, out = lrl.rollout(hierarchy, again, n_steps=4, learn=True)
        assert out.metrics["level0/n_updates"] == 1 and out.metrics["level0/older"] == 0


def test_updates_come_in_time_in_rollouts_shorter_than_theirs():
    hierarchy = lrl.Hierarchy([OnPolicy(rollout_length=16)], MAZE)
    carry, dropped, updates = lrl.init_carry(hierarchy, jax.random.key(0), 2), 0, 0
    for _ in range(4):
        carry, out = lrl.rollout(hierarchy, carry, n_steps=24, learn=True)
        dropped += float(out.metrics["level0/dropped_rows"])
        updates += int(out.metrics["level0/n_updates"])
    assert (dropped, updates) == (0, 6)


def test_on_policy_rings_hold_all_images_however_short_episodes_are():
    def learn(self, learner, replay, ctx):
        return learner, {"rows": replay.fresh()[1].sum()}

    def act(self, learner, memory, obs, ctx):
        return Decision(jnp.zeros(1), memory)

    level = made(act=act, learn=learn, rollout_length=32, n_updates=1)
    params = Pixels().default_params.replace(max_steps_in_episode=3)
    hierarchy = lrl.Hierarchy([level], Pixels(), params)
    carry = lrl.init_carry(hierarchy, jax.random.key(0), 2)
    carry, out = lrl.rollout(hierarchy, carry, n_steps=32, learn=True)
    assert out.metrics["level0/rows"] == 64 and out.metrics["level0/dropped_rows"] == 0


def test_a_planner_sees_its_input_beside_integers():
    seen = lrl.levels.planner_level.WithInput(Box(-1, 1, (2,)))
    obs, told = jnp.array([3, 4], jnp.uint8), jnp.array([-0.5, 0.9])
    np.testing.assert_allclose(seen.one(obs, told), [3, 4, -0.5, 0.9])


def test_a_draft_may_be_the_one_that_asks_for_greedy_behaviour():
    draft = drafts(decision=Decision(jnp.zeros(2), (), {}, greedy_below=jnp.bool_(True)))
    hierarchy = lrl.Hierarchy([made(act=still, draft=draft), made_holder()], MAZE)
    assert hierarchy.init(jax.random.key(0), 2).levels[0].greedy is not None


def test_a_level_may_ask_for_greedy_behaviour_in_training_only():
    def act(self, learner, memory, obs, ctx):
        greedy = jax.random.bernoulli(ctx.key) if ctx.training else False
        return Decision(jnp.zeros(2), memory, {}, greedy)

    hierarchy = lrl.Hierarchy([made(act=act), made_holder()], MAZE)
    state = hierarchy.eval().init(jax.random.key(0), 64)
    state, _ = hierarchy.get_action(state, jnp.zeros((64, 6)))
    assert 10 < int(state.levels[0].greedy.sum()) < 54


def test_rows_of_several_seeds_are_not_saved_as_one(tmp_path):
    hierarchy = lrl.Hierarchy([RandomLevel(buffer_size=64)], MAZE)
    many = jax.vmap(lambda key: hierarchy.init(key, 4))(jax.random.split(jax.random.key(0), 3))
    with pytest.raises(ValueError, match="take_seed"):
        hierarchy.save(many, tmp_path / "many")


def test_rollouts_work_under_x64():
    with jax.enable_x64(True):
        hierarchy = lrl.Hierarchy([RandomLevel(buffer_size=64)], *lrl.make("CartPole-v1"))
        carry = lrl.init_carry(hierarchy, jax.random.key(0), 2)
        carry, out = lrl.rollout(hierarchy, carry, n_steps=40)
        assert out.metrics["n_episodes"] > 0


@pytest.mark.parametrize("name", ["buffer_size", "rollout_length"])
def test_whole_floats_will_do_in_levels_of_ones_own(name):
    level = made(act=still, **{name: 64.0})
    assert getattr(lrl.Hierarchy([level], MAZE).levels[0], name) == 64
    lrl.Hierarchy([level], MAZE).init(jax.random.key(0), 2)
