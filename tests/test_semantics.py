"""The hierarchy against a plain Python simulation of each instance, written from its rules."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lrl_jax as lrl
from lrl_jax.levels import ActionRepeatLevel, ActionSequenceLevel, ConstantLevel, Decision, Level
from lrl_jax.levels.basic import SpecLearner
from lrl_jax.spaces import Box, Discrete

N_TICKS = 14
N_EXAMPLES = 42

# All numbers are small multiples of powers of two, so that every sum below is exact.


def free_box(*shape: int) -> Box:
    return Box(-math.inf, math.inf, shape)


@dataclasses.dataclass(frozen=True)
class Mix(Level):
    """Decides by all that it may know, so that a stale memory, input or observation shows."""

    input: Any = None  # space of the level input
    control_interval: int | None = None
    early: bool = False  # hands back also after some rewards: instances drift apart
    buffer_size: int = 0
    chunk_size: int | None = 0
    asks: bool = False  # asks for greedy behaviour below, now and then
    reward_discount: float = 1.0
    needs: tuple[str, ...] = ()

    def input_space(self):
        return self.input

    def init_learner(self, key, spec):
        return SpecLearner(spec)

    def init_memory(self, learner):
        return {"acts": jnp.zeros((), jnp.int32), "heard": jnp.zeros((), jnp.float32)}

    def act(self, learner, memory, obs, ctx):
        def weighted(x):
            x = x.reshape(-1).astype(jnp.float32)
            return (x * (1 + jnp.arange(x.size) % 2)).sum()

        total = weighted(obs) + 0.5 * weighted(ctx.level_input)
        total = total + 0.25 * memory["acts"] + memory["heard"]
        space = learner.spec.action_space
        if isinstance(space, Discrete):
            action = jnp.floor(4 * total).astype(jnp.int32) % space.n
        else:
            action = (0.5 * total + jnp.arange(space.dim, dtype=jnp.float32)).reshape(space.shape)
        acts = memory["acts"] + 1
        store = {"acts": acts, "explores": ctx.explores}
        greedy = jnp.floor(4 * total).astype(jnp.int32) % 2 == 0 if self.asks else False
        return Decision(action, {**memory, "acts": acts}, store, greedy)

    def after_transition(self, learner, memory, row, ctx):
        memory, hand_back = super().after_transition(learner, memory, row, ctx)
        if self.early:
            hand_back = hand_back | (jnp.floor(8 * row.rew).astype(jnp.int32) % 3 == 0)
        memory = {**memory, "heard": memory["heard"] + row.rew}
        return memory, hand_back, {"k": row.n_steps_in_control - 1}


# --- the same in plain Python: lists, ints and floats ---------------------------------------------


def flat(x: Any) -> list:
    """Numbers of nested lists, in order."""
    return [y for part in x for y in flat(part)] if isinstance(x, list | tuple) else [x]


class PlainMix:
    """What Mix does."""

    def __init__(self, level: Mix, action_space):
        self.level, self.space, self.greedy = level, action_space, False

    def fresh(self):
        return [0, 0.0]

    def act(self, memory, obs, level_input):
        def weighted(x):
            return sum((1 + k % 2) * v for k, v in enumerate(x))

        total = weighted(obs) + 0.5 * weighted(level_input) + 0.25 * memory[0] + memory[1]
        memory[0] += 1
        self.greedy = self.level.asks and math.floor(4 * total) % 2 == 0
        if isinstance(self.space, Discrete):
            return [math.floor(4 * total) % self.space.n]
        return [0.5 * total + j for j in range(self.space.dim)]

    def hand_back(self, memory, rew, n_in_control):
        memory[1] += rew
        interval = self.level.control_interval
        early = self.level.early and math.floor(8 * rew) % 3 == 0
        return early or (interval is not None and n_in_control >= interval)

    def fields(self, memory, n_in_control, explores):
        return {"acts": memory[0], "k": n_in_control - 1, "explores": explores}


class PlainScripted:
    """ConstantLevel, ActionSequenceLevel and ActionRepeatLevel."""

    def __init__(self, level, action_space):
        self.level, self.greedy = level, False

    def fresh(self):
        return [0]

    def act(self, memory, obs, level_input):
        memory[0] += 1
        if isinstance(self.level, ConstantLevel):
            return flat(self.level.action)
        if isinstance(self.level, ActionSequenceLevel):
            played = (memory[0] - 1) // self.level.repeat
            return flat(self.level.actions[min(played, len(self.level.actions) - 1)])
        return list(level_input)

    def hand_back(self, memory, rew, n_in_control):
        interval = self.level.control_interval
        return interval is not None and n_in_control >= interval

    def fields(self, memory, n_in_control, explores):
        return {}


@dataclasses.dataclass
class PlainLevel:
    """Bookkeeping of one level in one instance."""

    does: Any
    map_obs: Callable
    memory: list
    obs: list
    action: list
    discount: float = 1.0
    cum_reward: float = 0.0
    signals: dict = dataclasses.field(default_factory=dict)
    greedy: bool = False
    explores: bool = True
    first_child: int = 0
    elapsed: int = 0
    in_control: int = 0
    rows: list = dataclasses.field(default_factory=list)
    children: list = dataclasses.field(default_factory=list)  # of each row, places among the rows


class PlainInstance:
    """One instance of a hierarchy."""

    def __init__(self, entry: "Entry"):
        self.active, self.levels = 0, []
        below = [level.input_space() for level in entry.levels[1:]] + [entry.action_space]
        for i in reversed(range(len(below))):  # an ActionRepeatLevel takes what it gives
            if not isinstance(below[i], Box | Discrete):
                below[i] = below[i + 1]
        for level, space, name in zip(entry.levels, below, entry.maps, strict=True):
            does = (PlainMix if isinstance(level, Mix) else PlainScripted)(level, space)
            map_obs = MAPS[name][1]
            obs = [0.0] * len(map_obs([0.0] * math.prod(entry.obs_shape)))
            action = [0.0] * (space.dim if isinstance(space, Box) else 1)
            discount = level.reward_discount
            plain = PlainLevel(does, map_obs, does.fresh(), obs, action, discount)
            plain.signals = dict.fromkeys(entry.signals, 0.0)
            self.levels.append(plain)

    def input_of(self, i):
        return self.levels[i - 1].action if i else []

    def get_action(self, obs):
        for i, level in enumerate(self.levels):
            if self.active == i:
                level.obs = level.map_obs(obs)
                level.explores = not any(above.greedy for above in self.levels[:i])
                level.action = level.does.act(level.memory, level.obs, self.input_of(i))
                level.greedy = level.does.greedy
                if i < len(self.levels) - 1:
                    level.first_child = len(self.levels[i + 1].rows)
                if i < len(self.levels) - 1:
                    self.active = i + 1

    def process_transition(self, obs_next, rew, terminated, truncated, signals):
        for level in self.levels:
            weight = level.discount**level.elapsed
            level.cum_reward += weight * rew
            for name, x in signals.items():
                level.signals[name] += weight * x
            level.elapsed += 1
        for i in reversed(range(len(self.levels))):
            if self.active != i:
                continue
            level = self.levels[i]
            level.in_control += 1
            row = {
                "obs": level.obs,
                "level_input": self.input_of(i),
                "act": level.action,
                "rew": level.cum_reward,
                "obs_next": level.map_obs(obs_next),
                "terminated": terminated,
                "truncated": truncated,
                "elapsed_env_steps": level.elapsed,
            }
            row |= {f"signals/{name}": x for name, x in level.signals.items()}
            row |= level.does.fields(level.memory, level.in_control, level.explores)
            n_children = len(self.levels[i + 1].rows) if i < len(self.levels) - 1 else 0
            level.children.append(range(level.first_child, n_children))
            level.rows.append(row)
            level.greedy, level.signals = False, dict.fromkeys(level.signals, 0.0)
            back = level.does.hand_back(level.memory, level.cum_reward, level.in_control)
            level.cum_reward, level.elapsed = 0.0, 0
            if terminated or truncated:
                level.memory = level.does.fresh()
            if back or terminated or truncated:
                level.in_control = 0
                if i > 0:
                    self.active = i - 1


# --- the table of hierarchies ---------------------------------------------------------------------

# Each map for JAX arrays (None: the identity) and for the flat list of an observation.
MAPS = {
    "same": (None, list),
    "tail": (lambda obs: obs[1:], lambda obs: obs[1:]),
    "head": (lambda obs: obs[:1], lambda obs: obs[:1]),
    "mean": (
        lambda obs: (obs[:2] + obs[1:]) / 2,
        lambda obs: [(obs[0] + obs[1]) / 2, (obs[1] + obs[2]) / 2],
    ),
    "line": (lambda obs: 2 * obs[0] - obs[-1] + 1, lambda obs: [2 * obs[0] - obs[-1] + 1]),
    "outer": (
        lambda obs: obs[:, None] + obs[None, :2],
        lambda obs: [a + b for a in obs for b in obs[:2]],
    ),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A hierarchy of the table."""

    levels: tuple
    maps: tuple[str, ...] | None = None
    n: int = 3
    obs_shape: tuple[int, ...] = (3,)
    action_space: Any = free_box(2)
    masked: bool = True
    signals: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "maps", self.maps or ("same",) * len(self.levels))


class Spaces:
    """All that a hierarchy needs of an environment."""

    default_params = None
    name = "spaces"

    def __init__(self, entry: Entry):
        self._entry = entry

    def observation_space(self, params):
        return free_box(*self._entry.obs_shape)

    def action_space(self, params):
        return self._entry.action_space


CHILDREN = ("children",)
SMALL, BIG = free_box(1), free_box(2)
KIND = Discrete(3)
SEQUENCE = ActionSequenceLevel([[1.0], [2.0], [-0.5]], repeat=2, buffer_size=7)


def mix(input=None, interval=None, buffer_size=11, **settings):
    return Mix(input, interval, buffer_size=buffer_size, **settings)


TABLE = {
    # one level
    "one": Entry((mix(),)),
    "one, interval": Entry((mix(interval=3),), ("tail",), n=1, masked=False),
    "one, Discrete, chunks": Entry((mix(chunk_size=2),), ("mean",), n=5, action_space=KIND),
    "one, matrix of observations": Entry((mix(),), n=2, obs_shape=(2, 2), action_space=SMALL),
    "one, matrix from a map": Entry((mix(buffer_size=4),), ("outer",), n=2, masked=False),
    "sequence": Entry((SEQUENCE,), ("head",), action_space=SMALL),
    # two levels
    "two": Entry((mix(), mix(BIG, 2)), n=4),
    "two, hands back always": Entry((mix(), mix(SMALL, 1)), ("tail", "same"), n=2, masked=False),
    "two, never hands back": Entry((mix(), mix(SMALL, None)), ("mean", "line")),
    "two, long": Entry((mix(), mix(BIG, 5, 25)), ("line", "head"), n=1),
    "two, early": Entry((mix(), mix(BIG, 4, early=True)), ("same", "outer"), n=5),
    "two, gated": Entry((mix(chunk_size=None), mix(BIG, 3, chunk_size=None)), n=4),
    "two, chunks": Entry((mix(chunk_size=2), mix(BIG, 3, chunk_size=3)), n=5, masked=False),
    "two, Discrete input": Entry((mix(), mix(KIND, 2)), ("same", "tail"), action_space=SMALL),
    "two, Discrete both": Entry((mix(), mix(KIND, 3, early=True)), n=2, action_space=KIND),
    "repeat": Entry((mix(), ActionRepeatLevel(3, buffer_size=12)), ("tail", "same"), n=4),
    "repeat, Discrete": Entry(
        (mix(), ActionRepeatLevel(2, buffer_size=6)), action_space=KIND, masked=False
    ),
    "constant above": Entry((ConstantLevel([0.5, -2.0], buffer_size=9), mix(BIG, 2)), n=2),
    "sequence above": Entry((SEQUENCE, mix(SMALL, 2)), ("head", "same"), n=4, masked=False),
    # three levels
    "three": Entry((mix(), mix(SMALL, 2), mix(BIG, 3)), n=4),
    "three, all at once": Entry((mix(), mix(SMALL, 1), mix(BIG, 1)), n=1, masked=False),
    "three, early": Entry(
        (mix(), mix(BIG, 3, early=True, chunk_size=2), mix(SMALL, 4, early=True)),
        ("head", "mean", "tail"),
        n=5,
    ),
    "three, repeat in the middle": Entry(
        (mix(), ActionRepeatLevel(2, buffer_size=5), mix(KIND, 2)), ("line", "same", "head"), n=2
    ),
    "three, repeat last": Entry(
        (mix(interval=2), mix(KIND, 3), ActionRepeatLevel(2, buffer_size=9)),
        ("same", "head", "same"),
        action_space=KIND,
        masked=False,
    ),
    "three, gated": Entry(
        (mix(chunk_size=None), mix(BIG, 2, chunk_size=1), mix(SMALL, 2, chunk_size=None)), n=4
    ),
    # four levels
    "four": Entry((mix(), mix(SMALL, 2), mix(BIG, 1), mix(SMALL, 2)), n=3),
    "four, early": Entry(
        (mix(), mix(SMALL, 2, early=True), mix(KIND, 3, early=True), mix(BIG, 2, 31)),
        ("tail", "line", "same", "mean"),
        n=5,
        action_space=KIND,
    ),
    "four, scripted": Entry(
        (
            ConstantLevel([1.5], buffer_size=4),
            ActionRepeatLevel(2, buffer_size=4),
            mix(SMALL, None, chunk_size=2),
            mix(KIND, 2, early=True),
        ),
        ("same", "head", "outer", "tail"),
        n=2,
        masked=False,
    ),
    # greedy behaviour below, signals, discounted rewards, children
    "two, asks": Entry((mix(asks=True), mix(BIG, 3)), n=4),
    "three, asks": Entry((mix(asks=True), mix(SMALL, 2, asks=True), mix(BIG, 3)), n=3),
    "three, asks, gated": Entry(
        (mix(asks=True, chunk_size=None), mix(KIND, 2, asks=True, chunk_size=2), mix(BIG, 2)), n=5
    ),
    "one, signals": Entry((mix(),), signals=("cost", "health")),
    "two, signals": Entry((mix(), mix(SMALL, 3, early=True)), n=2, signals=("cost",)),
    "one, discounted": Entry((mix(reward_discount=0.5),), n=2, masked=False),
    "two, discounted": Entry(
        (mix(reward_discount=0.5), mix(BIG, 4, reward_discount=0.25)), n=4, signals=("cost",)
    ),
    "three, discounted": Entry(
        (mix(reward_discount=0.5), mix(SMALL, 2), mix(BIG, 2, early=True)), n=2, signals=("cost",)
    ),
    "two, children": Entry((mix(needs=CHILDREN), mix(BIG, 3, 20)), n=4),
    "two, few children kept": Entry((mix(needs=CHILDREN, buffer_size=30), mix(BIG, 2, 9)), n=3),
    "two, children, early": Entry(
        (mix(needs=CHILDREN), mix(SMALL, 4, 40, early=True)), n=5, masked=False
    ),
    "three, children": Entry(
        (mix(needs=CHILDREN), mix(SMALL, 2, 12, needs=CHILDREN), mix(BIG, 2, 24)), n=3
    ),
    "three, all of it": Entry(
        (
            mix(needs=CHILDREN, asks=True, reward_discount=0.5),
            mix(SMALL, 2, 12, needs=CHILDREN, early=True, asks=True),
            mix(KIND, 2, 24, reward_discount=0.5),
        ),
        n=3,
        action_space=KIND,
        signals=("cost", "health"),
    ),
}


@functools.cache
def build(name: str) -> tuple[lrl.Hierarchy, Callable]:
    """The hierarchy, and a function that plays all ticks of a case."""
    entry = TABLE[name]
    maps = [MAPS[m][0] for m in entry.maps]
    hierarchy = lrl.Hierarchy(entry.levels, Spaces(entry), env_obs_maps=maps, signals=entry.signals)

    def tick(state, x):
        decided, action = hierarchy.get_action(state, x["obs"], x.get("act_mask"))
        after = hierarchy.process_transition(
            decided,
            x["obs_next"],
            x["rew"],
            x["terminated"],
            x["truncated"],
            x.get("step_mask"),
            {name: x[name] for name in entry.signals},
        )
        return after, (decided, action, after)

    def play(inputs):
        state = hierarchy.init(jax.random.key(0), entry.n)
        return state, jax.lax.scan(tick, state, inputs)[1]

    return hierarchy, play


@functools.cache
def compiled(name: str) -> Callable:
    return jax.jit(build(name)[1])


def make_inputs(name: str, seed: int, p_end: float, p_both: float, p_mask: float) -> dict:
    """What the environments of a case return, [T, n, ...]; multiples of 1/8."""
    entry, rng = TABLE[name], np.random.default_rng(seed)
    shape = (N_TICKS, entry.n)

    def eighths(*extra):
        return (rng.integers(-16, 17, (*shape, *extra)) / 8).astype(np.float32)

    ends, kind = rng.random(shape) < p_end, rng.random(shape)
    terminated = ends & (kind < 0.5 + p_both / 2)
    truncated = ends & (kind > 0.5 - p_both / 2)
    inputs = {
        "obs": eighths(*entry.obs_shape),
        "obs_next": eighths(*entry.obs_shape),
        "rew": eighths(),
        "terminated": terminated,
        "truncated": truncated,
    }
    inputs |= {name: eighths() for name in entry.signals}
    if entry.masked:
        # An instance may decide and yet not be stepped.
        inputs["act_mask"] = rng.random(shape) < p_mask
        inputs["step_mask"] = inputs["act_mask"] & (rng.random(shape) < 0.5 + p_mask / 2)
    return inputs


CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "p_end": st.sampled_from([0.0, 0.1, 0.2, 0.4, 1.0]),
        "p_both": st.sampled_from([0.0, 0.5, 1.0]),
        "p_mask": st.sampled_from([0.0, 0.3, 0.7, 0.9, 1.0]),
    }
)


def agree(actual, expected, what: str) -> None:
    """Integers and bools exactly, floats to 1e-6."""
    actual = np.asarray(actual)
    expected = np.asarray(expected).reshape(actual.shape)
    if np.array_equal(actual, expected):
        return  # assert_allclose takes a hundred times as long, for thousands of calls
    tolerance = 1e-6 if np.issubdtype(actual.dtype, np.floating) else 0
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance, err_msg=what)


def of_instances(state) -> dict[str, Any]:
    """Leaves of a state that belong to instances, [n, ...] each."""
    leaves = {"active_level": state.active_level}
    for j, level in enumerate(state.levels):
        shared = ("buffer", "learner", "owed", "learn_from", "learn_until")
        own = level.replace(**dict.fromkeys(shared))
        leaves |= {(j, k): x for k, x in enumerate(jax.tree.leaves(own))}
        if level.buffer is not None:
            words, *counts = jax.tree.leaves(level.buffer)
            leaves[f"{j} words"] = np.moveaxis(words, 1, 0)
            leaves |= {f"{j} counts {k}": x for k, x in enumerate(counts)}
    return leaves


def check_spared(before, after, mask: list[bool], what: str) -> None:
    """Instances outside the mask are equal bit for bit."""
    spared = ~np.array(mask)
    if not spared.any():
        return
    a, b = of_instances(before), of_instances(after)
    assert a.keys() == b.keys()
    for name, x in a.items():
        x, y = x[spared], b[name][spared]
        assert x.dtype == y.dtype and x.tobytes() == y.tobytes(), (
            f"leaf {name} of an instance outside the mask changed {what}: {x} to {y}"
        )


def compare_state(state, instances: list[PlainInstance], tick: str) -> None:
    """Who decides next, and the running sums, counters and decisions of every level."""
    agree(state.active_level, [x.active for x in instances], f"active level {tick}")
    for j, level in enumerate(state.levels):
        plain = [x.levels[j] for x in instances]
        where = f"of level {j} {tick}"
        agree(level.cum_reward, [x.cum_reward for x in plain], f"cum_reward {where}")
        agree(level.elapsed_env_steps, [x.elapsed for x in plain], f"elapsed steps {where}")
        agree(level.n_steps_in_control, [x.in_control for x in plain], f"in control {where}")
        agree(level.action, [x.action for x in plain], f"action {where}")
        agree(level.obs, [x.obs for x in plain], f"observation {where}")
        for name, value in level.signals.items():
            agree(value, [x.signals[name] for x in plain], f"{name} {where}")
        if level.greedy is not None:
            agree(level.greedy, [x.greedy for x in plain], f"greedy {where}")
        if isinstance(plain[0].does, PlainMix):
            agree(level.memory["acts"], [x.memory[0] for x in plain], f"memory {where}")
            agree(level.memory["heard"], [x.memory[1] for x in plain], f"memory {where}")


def compare_rows(state, instances: list[PlainInstance], levels: tuple) -> None:
    """Every stored row of every level, grouped by instance, oldest first."""
    for j, (level, settings_) in enumerate(zip(state.levels, levels, strict=True)):
        capacity = settings_.buffer_size // len(instances)
        kept = [(i, row) for i, x in enumerate(instances) for row in x.levels[j].rows[-capacity:]]
        rows = lrl.buffers.stored(level.buffer)
        assert rows["instance"].tolist() == [i for i, _ in kept], f"rows of level {j}"
        if not kept:
            continue
        assert set(rows) == {"instance", *kept[0][1]}
        for name in kept[0][1]:
            agree(rows[name], [row[name] for _, row in kept], f"{name} of level {j}'s rows")


@pytest.mark.parametrize("name", TABLE)
@settings(max_examples=N_EXAMPLES)
@given(case=CASES)
def test_agrees_with_a_plain_simulation(name, case):
    entry, inputs = TABLE[name], make_inputs(name, **case)
    start, (decided, actions, after) = jax.device_get(compiled(name)(inputs))
    # Keys stay arrays of JAX, which are slow to take apart.
    decided, after = decided.replace(stream=None), after.replace(stream=None)
    instances = [PlainInstance(entry) for _ in range(entry.n)]
    total, before = 0, start
    plain = {k: v.reshape(N_TICKS, entry.n, -1).tolist() for k, v in inputs.items()}
    everywhere = [[[True]] * entry.n] * N_TICKS
    for t in range(N_TICKS):
        acts = [m for (m,) in plain.get("act_mask", everywhere)[t]]
        steps = [m for (m,) in plain.get("step_mask", everywhere)[t]]
        state, stepped = (jax.tree.map(lambda x, t=t: x[t], s) for s in (decided, after))
        check_spared(before, state, acts, f"by get_action at {t}")
        for i, instance in enumerate(instances):
            if acts[i]:
                instance.get_action(plain["obs"][t][i])
        compare_state(state, instances, f"after deciding at {t}")
        agree(actions[t], [x.levels[-1].action for x in instances], f"actions at {t}")
        check_spared(state, stepped, steps, f"by process_transition at {t}")
        for i, instance in enumerate(instances):
            if steps[i]:
                rew, terminated, truncated = (
                    plain[k][t][i][0] for k in ("rew", "terminated", "truncated")
                )
                signals = {name: plain[name][t][i][0] for name in entry.signals}
                obs_next = plain["obs_next"][t][i]
                instance.process_transition(obs_next, rew, terminated, truncated, signals)
        compare_state(stepped, instances, f"after the transition at {t}")
        total += sum(steps)
        assert int(stepped.n_total_env_steps) == total
        before = stepped
    compare_rows(before, instances, entry.levels)
    compare_children(before, instances, entry.levels)


@functools.partial(jax.jit, static_argnums=2)
def children_of(buffer, below, most):
    """Children of all slots of a ring, by row id, with the field that tells rows apart."""
    replay = lrl.buffers.Replay(buffer, below)
    ids = jnp.arange(buffer.capacity * buffer.n_env_instances)
    children, mask = replay.children(replay._rows(ids), most)
    return children.obs, children.rew, mask


def compare_children(state, instances: list[PlainInstance], levels: tuple) -> None:
    """The rows of the level below inside each stored row, as far as they are stored."""
    n, most = len(instances), 3
    for j, settings_ in enumerate(levels):
        if "children" not in settings_.needs:
            continue
        buffer, below = state.levels[j].buffer, state.levels[j + 1].buffer
        obs, rew, mask = map(np.asarray, children_of(buffer, below, most))
        for i, instance in enumerate(instances):
            own, lower = instance.levels[j], instance.levels[j + 1].rows
            forgotten = len(lower) - int(below.size[i])
            for place in range(len(own.rows) - int(buffer.size[i]), len(own.rows)):
                at = (place % buffer.capacity) * n + i
                expected = list(own.children[place])[:most]
                kept = [c >= forgotten for c in expected] + [False] * (most - len(expected))
                assert mask[:, at].tolist() == kept, f"children of row {place} of level {j}"
                for k, child in enumerate(expected):
                    if kept[k]:
                        agree(obs[k, at], lower[child]["obs"], "a child's observation")
                        agree(rew[k, at], lower[child]["rew"], "a child's reward")


def test_the_table_is_large_enough():
    assert len(TABLE) >= 40 and len(TABLE) * N_EXAMPLES >= 1700
    assert {len(entry.levels) for entry in TABLE.values()} == {1, 2, 3, 4}
    assert {entry.n for entry in TABLE.values()} == {1, 2, 3, 4, 5}
    # Rings wrap: the last level of most entries closes a row at every tick.
    wraps = [e.levels[-1].buffer_size // e.n < N_TICKS for e in TABLE.values()]
    assert sum(wraps) >= 20


@pytest.mark.parametrize("name", TABLE)
def test_eager_equals_jit(name):
    """The first ticks without any jit give the bits that the compiled scan gives."""
    inputs = make_inputs(name, seed=7, p_end=0.4, p_both=0.5, p_mask=0.9)
    start, (_, actions, after) = compiled(name)(inputs)
    hierarchy, _ = build(name)
    state = start
    with jax.disable_jit():
        for t in range(2):
            x = {k: v[t] for k, v in inputs.items()}
            state, action = hierarchy.get_action(state, x["obs"], x.get("act_mask"))
            state = hierarchy.process_transition(
                state,
                x["obs_next"],
                x["rew"],
                x["terminated"],
                x["truncated"],
                x.get("step_mask"),
                {signal: x[signal] for signal in TABLE[name].signals},
            )
            agree(action, actions[t], f"action at {t}")
            expected = jax.tree.map(lambda x, t=t: x[t], after)
            for (path, a), b in zip(
                jax.tree.leaves_with_path(state), jax.tree.leaves(expected), strict=True
            ):
                if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                    a, b = jax.random.key_data(a), jax.random.key_data(b)
                assert a.dtype == b.dtype and a.shape == b.shape
                agree(a, b, f"{jax.tree_util.keystr(path)} at {t}")
