"""What a hierarchy's checkpoint is taken for: settings, functions, arrays, replay."""

import dataclasses
import functools
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrl_jax as lrl
from lrl_jax import buffers, checkpoints
from lrl_jax.algorithms import SAC
from lrl_jax.env_spec import GoalIndices
from lrl_jax.hierarchies.described import ObsMap, describe, differences
from lrl_jax.levels import Decision, Level, RandomLevel, SACLevel
from lrl_jax.schedules import RampSchedule
from lrl_jax.spaces import Box

BOX = Box(-1, 1, (2,))


class Spaces:
    """All that a hierarchy needs of an environment."""

    name = "spaces"
    default_params = None

    def observation_space(self, params):
        return Box(-10, 10, (3,))

    def action_space(self, params):
        return BOX


def sac(hidden=4, env_obs_maps=None, **settings):
    given: dict[str, Any] = {"buffer_size": 12, "batch_size": 2, "warm_up_steps": 0}
    algorithm = SAC(hidden=(hidden,), **settings)
    return lrl.Hierarchy([SACLevel(algorithm, **given)], Spaces(), env_obs_maps=env_obs_maps)


@functools.cache
def shared():
    return sac()


def played(hierarchy, n_ticks=3, n=2):
    state = hierarchy.init(jax.random.key(0), n)
    for t in range(n_ticks):
        state = tick(hierarchy, state, t)
    return state


def tick(hierarchy, state, t):
    obs = jnp.full((state.n_env_instances, 3), t, jnp.float32)
    state, _ = hierarchy.get_action(state, obs)
    zeros = jnp.zeros(len(obs))
    return hierarchy.process_transition(state, obs + 1, zeros, zeros > 0, zeros > 0)


def same(a, b):
    assert checkpoints.signatures(a) == checkpoints.signatures(b)

    def bits(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x).tobytes()

    return [bits(x) for x in jax.tree.leaves(a)] == [bits(x) for x in jax.tree.leaves(b)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "agent"
    shared().save(played(shared()), path)
    return path


# --- settings -------------------------------------------------------------------------------------


def edited(value, **changes):
    """As if the settings of a checkpoint had been written with these changes; None removes."""
    out = json.loads(json.dumps(describe(value)))
    for name, change in changes.items():
        if change is None:
            del out[name]
        else:
            out[name] = change
    return out


@dataclasses.dataclass(frozen=True)
class Inner:
    """Settings within settings."""

    size: int
    depth: int = 2


@dataclasses.dataclass(frozen=True)
class Outer:
    """Settings, one of which has a default that depends on another."""

    inner: Inner = Inner(3)
    rate: Any = None
    of: Any = None

    def __post_init__(self):
        if self.rate is None:
            object.__setattr__(self, "rate", 2.0 * self.inner.size)


def test_settings_added_later_have_their_default():
    assert differences(edited(Outer()), Outer()) == []
    assert differences(edited(Outer(), rate=None), Outer()) == []
    assert differences(edited(Outer(), inner=edited(Inner(3), depth=None)), Outer()) == []
    found = differences(edited(Outer(), rate=None), Outer(rate=5.0))
    assert found == ["rate: saved 6.0, here 5.0"]
    found = differences(edited(Outer(), inner=edited(Inner(3), depth=None)), Outer(Inner(3, 4)))
    assert found == ["inner.depth: saved 2, here 4"]
    found = differences(edited(Outer(), inner=edited(Inner(3), size=None)), Outer())
    assert found == ["inner.size: not saved, here 3"]
    assert differences(edited(Outer(), gone=3), Outer()) == ["gone: saved 3, unknown here"]
    assert differences(edited(Inner(3)), Outer()) == [": saved Inner, here Outer"]


def test_which_entries_are_the_state_follows_from_the_others():
    """Checkpoints of version 0.2.0 do not say so."""
    parts = (("achieved_goal", (0, 1)), ("desired_goal", (2, 3)))
    earlier = json.loads(json.dumps(describe(GoalIndices(4, parts))))
    now = GoalIndices(4, (("state", (0, 1)), *parts))
    assert differences(earlier, now) == []
    moved = GoalIndices(4, (("state", (0, 1)), ("achieved_goal", (2, 3)), parts[1]))
    assert differences(earlier, moved)


def test_settings_within_partial_functions_too():
    old, new = (
        Outer(of=functools.partial(Inner, **k)) for k in ({"size": 3}, {"size": 3, "depth": 2})
    )
    assert differences(edited(old), new) == []
    new = Outer(of=functools.partial(Inner, size=3, depth=4))
    assert differences(edited(old), new) == ["of.depth: saved 2, here 4"]


def test_a_checkpoint_of_before_a_setting_was_added(saved, tmp_path, monkeypatch):
    """Without the field in the settings, and without its leaf in the learner."""
    path = tmp_path / "a"
    state = played(shared())
    learner = state.levels[0].learner
    settings = {k: v for k, v in learner.state.settings.items() if k != "tau"}
    learner = learner.replace(state=learner.state.replace(settings=settings))
    old = state.replace(levels=(state.levels[0].replace(learner=learner),))
    meta = checkpoints.read_meta(saved, kind="hierarchy")
    del meta["settings"]["levels"][0]["algorithm"]["tau"]
    checkpoints.write(path, old, meta, kind="hierarchy")
    assert same(shared().load(path), state)
    with pytest.raises(ValueError, match=r"levels\[0\]\.algorithm\.tau: saved 0\.005, here 0\.5"):
        sac(tau=0.5).load(path)


# --- functions ------------------------------------------------------------------------------------

PAIRS: dict[str, tuple[Callable, Callable]] = {
    "sin and cos": (lambda o: jnp.sin(o), lambda o: jnp.cos(o)),
    "numbers change places": (lambda o: 2 * o - 1, lambda o: 1 * o - 2),
    "plus and minus": (lambda o: o + 1, lambda o: o - 1),
    "a slice": (lambda o: o[:2], lambda o: o[1:]),
    "far from 0": (lambda o: jnp.clip(o, -5, 5), lambda o: o),
    "a sign": (lambda o: o, lambda o: -o),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("space", [Box(-10, 10, (3,)), Box(-np.inf, np.inf, (3,))])
def test_maps_are_told_apart_by_what_they_do(name, space):
    for f, g in (PAIRS[name], PAIRS[name][::-1]):
        kept = json.loads(json.dumps(describe(ObsMap(f, space))))
        assert differences(kept, ObsMap(f, space), "map") == []
        assert differences(kept, ObsMap(lambda o, f=f: f(o), space)) == []
        (found,) = differences(kept, ObsMap(g, space), "map")
        assert found.startswith("map: saved <lambda>, here <lambda>, a function that does")
    for f in PAIRS[name]:  # as settings their inputs are not known
        kept = json.loads(json.dumps(describe(f)))
        assert differences(kept, f) == []
        assert differences(kept, next(g for g in PAIRS[name] if g is not f))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_maps_of_other_numbers(dtype):
    space = Box(0, 1, (20,), dtype) if dtype == "bool" else Box(0, 200, (20,), dtype)
    kept = json.loads(json.dumps(describe(ObsMap(lambda o: o, space))))
    assert np.shape(kept["values"]) == (12, 16) and np.std(kept["values"]) > 0
    assert not differences(kept, ObsMap(lambda o: o[::-1][::-1], space))
    assert differences(kept, ObsMap(lambda o: o[::-1], space))


def test_another_map_is_refused(tmp_path):
    first, second = (sac(env_obs_maps=[f]) for f in PAIRS["sin and cos"])
    first.save(first.init(jax.random.key(0), 2), tmp_path / "a")
    with pytest.raises(ValueError, match=r"other settings: env_obs_maps\[0\]: saved <lambda>"):
        second.load(tmp_path / "a")


SCALE = 2.0


def test_what_a_function_refers_to_counts(monkeypatch):
    def scaled(o):
        return helper(o) * SCALE

    kept = json.loads(json.dumps(describe(scaled)))
    assert kept["globals"]["SCALE"] == 2.0 and not differences(kept, scaled)
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3.0)
    assert differences(kept, scaled)
    monkeypatch.undo()
    monkeypatch.setattr(sys.modules[__name__], "helper", lambda o: o - 1)
    assert differences(kept, scaled)

    def by_default(o, k=2):
        return k * o

    def by_another(o, k=3):
        return k * o

    by_another.__name__ = "by_default"
    assert differences(json.loads(json.dumps(describe(by_default))), by_another)


def helper(o):
    """Beside it."""
    return o + 1


def test_functions_of_another_python_are_compared_by_names_and_numbers():
    f, g = PAIRS["plus and minus"]
    kept = json.loads(json.dumps(describe(f)))
    kept["code"] = {"2.7-O0": "unknown"}
    assert not differences(kept, f) and not differences(kept, g)  # as far as it can be told
    assert differences(kept, PAIRS["sin and cos"][0])


def test_functions_of_libraries_go_by_their_names():
    kept = json.loads(json.dumps(describe([jnp.tanh, RampSchedule(0, 1, 2), SAC])))
    assert not differences(kept, [jnp.tanh, RampSchedule(0, 1, 2), SAC])
    assert len(differences(kept, [jnp.sin, RampSchedule(0, 1, 3), RandomLevel])) == 3


CHILD = """
import sys
import test_saved_hierarchies as t
h = t.lrl.Hierarchy([t.WithFunction(t.reward)], t.Spaces(), env_obs_maps=[t.seen])
h.load(sys.argv[1])
"""


def seen(obs):
    """A map."""
    return jnp.stack([x for x in obs if x is not None][:2]) * SCALE


def reward(obs):
    """A function of a level."""
    return sum(obs[i] * SCALE for i in range(3)) + helper(obs)["x" == 0]


@dataclasses.dataclass(frozen=True)
class WithFunction(Level):
    """A level with a function among its settings."""

    function: Callable

    def act(self, learner, memory, obs, ctx):
        return Decision(jnp.zeros(2), memory)


def test_the_same_functions_are_accepted_in_another_process(tmp_path):
    hierarchy = lrl.Hierarchy([WithFunction(reward)], Spaces(), env_obs_maps=[seen])
    hierarchy.save(hierarchy.init(jax.random.key(0), 2), tmp_path / "a")
    here = Path(__file__).parent
    child = [sys.executable, "-c", CHILD, str(tmp_path / "a")]
    subprocess.run(child, cwd=here, check=True, timeout=120)


# --- other settings on purpose --------------------------------------------------------------------


def test_other_settings_on_purpose(saved, caplog):
    new = sac(learning_rate=RampSchedule(0.25, 0.125, 10), gamma=0.5)
    with pytest.raises(ValueError, match=r'other settings.*settings="new"'):
        new.load(saved)
    assert not caplog.records
    state = new.load(saved, settings="new")
    assert "algorithm.gamma: saved 0.99, here 0.5" in caplog.text
    learner = state.levels[0].learner.state
    assert float(learner.settings["gamma"]) == 0.5 and "learning_rate" not in learner.settings
    assert float(learner.scheduled["learning_rate"]) == 0.25
    assert same(learner.actor, played(shared()).levels[0].learner.state.actor)
    assert int(buffers.n_rows(state.levels[0].buffer)) == 6
    assert checkpoints.signatures(state) == checkpoints.signatures(new.init(jax.random.key(0), 2))
    new.learn(state)
    with pytest.raises(ValueError, match=r"other arrays: .*actor.* was saved float32 \[3, 4\]"):
        sac(hidden=5).load(saved, settings="new")
    with pytest.raises(ValueError, match="'same' or 'new', got 'old'"):
        new.load(saved, settings="old")


def test_without_replay(tmp_path):
    state = played(shared(), 5)
    shared().save(state, tmp_path / "a", replay=False)
    loaded = shared().load(tmp_path / "a")
    assert checkpoints.signatures(loaded) == checkpoints.signatures(state)
    assert same(loaded.levels[0].learner, state.levels[0].learner)
    assert int(buffers.n_rows(loaded.levels[0].buffer)) == 0
    assert int(loaded.levels[0].owed) == 0 and int(loaded.n_total_env_steps) == 10
    again = shared().load(tmp_path / "a", n_env_instances=3)
    assert int(buffers.n_rows(again.levels[0].buffer)) == 0
    loaded = tick(shared(), loaded, 0)
    assert int(buffers.n_rows(loaded.levels[0].buffer)) == 2
    shared().learn(loaded)


# --- what is refused ------------------------------------------------------------------------------


def test_a_state_of_another_hierarchy_is_not_saved(tmp_path):
    other = sac(hidden=5)
    state = other.init(jax.random.key(0), 2)
    with pytest.raises(ValueError, match=r"\['bias'\] was given float32 \[5\], here float32 \[4\]"):
        shared().save(state, tmp_path / "a")
    tested = shared().for_testing(played(shared()), jax.random.key(0), 2)
    with pytest.raises(ValueError, match=r"\.buffer.* is missing"):
        shared().save(tested, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_every_flipped_byte_is_refused(saved, tmp_path):
    path = Path(shutil.copytree(saved, tmp_path / "a"))
    files = sorted(p for p in path.rglob("*") if p.is_file())
    rng = random.Random(1)
    for i in range(40):
        file = files[i % len(files)]
        whole = file.read_bytes()
        place = rng.randrange(len(whole))
        file.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :]
        )
        with pytest.raises(ValueError) as error:
            shared().load(path)
        assert file.name in str(error.value)
        file.write_bytes(whole)
    assert same(shared().load(path), shared().load(saved))


def test_a_format_that_was_never_released_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "settings.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match=r"0\.2 before its release.*commit b770d6f"):
        shared().load(tmp_path / "a")
    (tmp_path / "a" / "settings.json").write_text("[")
    with pytest.raises(ValueError, match=r"settings\.json is damaged"):
        shared().load(tmp_path / "a")


def test_other_kinds_are_refused(tmp_path):
    checkpoints.write(tmp_path / "a", {}, {}, kind="run")
    with pytest.raises(ValueError, match="is of a run, not of a hierarchy"):
        shared().load(tmp_path / "a")
