"""Exported policies: what they do, and what they need."""

import ast
import dataclasses
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

import lrl_jax as lrl
from lrl_jax import policy_loader
from lrl_jax.algorithms import PPO, SAC
from lrl_jax.hierarchies.gating import chunk_of
from lrl_jax.levels import (
    ActionRepeatLevel,
    ActionSequenceLevel,
    ConstantLevel,
    Decision,
    Level,
    PPOLevel,
    RandomLevel,
    SACLevel,
)
from lrl_jax.training.train import Trainer

MAZE, PARAMS = lrl.make("Maze2D-Medium-v0")
N = 3


@dataclasses.dataclass(frozen=True)
class Odd(Level):
    """Uses all that an exported step has to carry: keys and bfloat16, rewards, signals, greedy."""

    control_interval: int | None = 3
    chunk_size: int | None = 0

    def input_space(self):
        return lrl.spaces.Box(-1, 1, (2,))

    def init_learner(self, key, spec):
        unused = jnp.zeros((64, 64))
        return {"scale": jnp.asarray(0.5, jnp.bfloat16), "unused": unused, "own": key}

    def init_memory(self, learner):
        return {"heard": jnp.float32(0), "key": learner["own"]}

    def act(self, learner, memory, obs, ctx):
        noise = jax.random.uniform(memory["key"], (2,)) + jax.random.normal(ctx.key, (2,))
        heard = memory["heard"] * learner["scale"].astype(jnp.float32)
        memory = {**memory, "key": jax.random.fold_in(memory["key"], 1)}
        return Decision(ctx.level_input + 0.1 * noise + heard + obs[:2] / 10, memory)

    def after_transition(self, learner, memory, row, ctx):
        memory, back = super().after_transition(learner, memory, row, ctx)
        heard = memory["heard"] + row.rew + row.signals["cost"]
        return {**memory, "heard": heard}, back | (row.rew > 0.8)


SIGNALS = ("cost",)
LEVELS: dict[str, Any] = {
    "random": [RandomLevel()],
    "repeat": [RandomLevel(), ActionRepeatLevel(3)],
    "sequence": [ActionSequenceLevel(((0.5, -2.0), (0.1, 0.2)))],
    "constant": [ConstantLevel([0.5, -2.0]), Odd()],
    "odd": [RandomLevel(), Odd(), Odd(2)],
    "gated": [RandomLevel(), Odd(chunk_size=None)],
    "sac": [SACLevel(SAC(hidden=(8,)), buffer_size=64, warm_up_steps=0)],
    "ppo": [PPOLevel(PPO(hidden=(8,)), rollout_length=8), ActionRepeatLevel(2)],
}


def made(name: str) -> tuple[lrl.Hierarchy, int | None]:
    """A hierarchy, and the batch size that it has to be exported for."""
    if name in LEVELS:
        return lrl.Hierarchy(LEVELS[name], MAZE, PARAMS, signals=SIGNALS), None
    trainer = Trainer.build(tiny(name))
    chunks = any(chunk_of(level) for level in trainer.hierarchy.levels)
    return trainer.hierarchy, N if chunks else None


def data_of(hierarchy, n_steps: int, n: int = N) -> list[dict[str, np.ndarray]]:
    """What an environment might say in an episode or two."""
    rng = np.random.default_rng(0)
    space = hierarchy.env_spec.obs_space
    steps = []
    for t in range(n_steps):
        steps.append(
            {
                "obs": rng.uniform(0, 2, (n, *space.shape)).astype(space.dtype),
                "rew": rng.uniform(-1, 1, n).astype(np.float32),
                "first": np.full(n, t == 0) | (rng.random(n) < 0.2),
                "signals": {name: rng.random(n).astype(np.float32) for name in hierarchy.signals},
            }
        )
    return steps


def actions_of(hierarchy, state, steps) -> list[np.ndarray]:
    """The same by the hierarchy itself: ends of episodes are told it, with any observation."""
    hierarchy, actions = hierarchy.eval(), []
    for t, step in enumerate(steps):
        if t:
            state = hierarchy.process_transition(
                state, step["obs"], step["rew"], step["first"], step["first"], None, step["signals"]
            )
        state, action = hierarchy.get_action(state, step["obs"])
        actions.append(np.asarray(hierarchy.action_space.clip(action)))
    return actions


PRESETS_TESTED = [
    "smoke",
    "cartpole-dqn",
    "maze2d-medium-splates",
    *(
        pytest.param(name, marks=pytest.mark.slow)  # half a minute of compilation each
        for name in (
            "pendulum-tdmpc2",
            "maze2d-medium-dads",
            "maze2d-medium-splates-tdmpc2-small",
            "maze2d-large-three-levels",
        )
    ),
]


@pytest.mark.parametrize("name", [*LEVELS, *PRESETS_TESTED])
def test_the_exported_policy_acts_as_the_hierarchy_does_in_eval_mode(name, tmp_path):
    hierarchy, batch_size = made(name)
    state = hierarchy.init(jax.random.key(1), N)
    path = tmp_path / "policy.zip"
    lrl.export_policy(hierarchy, state, path, batch_size=batch_size)
    policy = lrl.load_policy(path)
    steps = data_of(hierarchy, 8)
    memory, actions = policy.init(N), []
    for step in steps:
        memory, action = policy(memory, **step)
        actions.append(action)
    expected = actions_of(hierarchy, hierarchy.get_copy(state), steps)
    np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-5)
    assert name == "cartpole-dqn" or len(np.unique(np.asarray(actions))) > 3


ALONE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        allowed = name.split(".")[0] not in {"lrl_jax", "flax", "optax", "gymnax", "gymnasium"}
        if not allowed:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[1])
import numpy as np
from policy_loader import load_policy

policy = load_policy(sys.argv[1])
data = np.load(sys.argv[2])
memory, actions = policy.init(data["obs"].shape[1]), []
for obs, rew, first in zip(data["obs"], data["rew"], data["first"]):
    memory, action = policy(memory, obs, rew, first)
    actions.append(np.asarray(action))
np.save(sys.argv[3], actions)
assert "lrl_jax" not in sys.modules
"""


def test_the_file_acts_without_the_library(tmp_path):
    hierarchy, batch_size = made("smoke")
    state = hierarchy.init(jax.random.key(1), N)
    path, data, out = (tmp_path / x for x in ("policy.zip", "data.npz", "actions.npy"))
    lrl.export_policy(hierarchy, state, path, batch_size=batch_size, platforms=("cpu",))
    steps = data_of(hierarchy, 6)
    np.savez(data, **{k: np.stack([s[k] for s in steps]) for k in ("obs", "rew", "first")})
    command = [sys.executable, "-c", ALONE, str(path), str(data), str(out)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = actions_of(hierarchy, hierarchy.get_copy(state), steps)
    np.testing.assert_allclose(np.load(out), expected, rtol=1e-5, atol=1e-5)


def test_the_loader_imports_jax_and_numpy_alone():
    tree = ast.parse(Path(policy_loader.__file__).read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    roots = {name.split(".")[0] for name in names}
    assert roots <= {"__future__", "json", "zipfile", "typing", "jax", "numpy"}


def test_one_export_serves_any_batch_size_every_platform_and_loops():
    hierarchy, _ = made("repeat")
    state = hierarchy.init(jax.random.key(1), 2)
    policy = lrl.export_policy(hierarchy, state)
    assert policy.about["platforms"] == ["cpu", "cuda", "tpu"]
    for n in (1, 5):
        steps = data_of(hierarchy, 4, n)
        for step in steps:
            del step["signals"]["cost"]
            step["signals"] = {"cost": np.zeros(n, np.float32)}
        obs = np.stack([s["obs"] for s in steps])

        def step(memory, obs):
            return policy(memory, obs, signals={"cost": jnp.zeros(obs.shape[0])})

        _, actions = jax.lax.scan(step, policy.init(n), obs)
        for s in steps:
            s["first"] = s["first"] & False
        resized = hierarchy.set_n_env_instances(state, n)
        expected = actions_of(hierarchy, hierarchy.get_copy(resized), steps)
        np.testing.assert_array_equal(actions, expected)


def test_memory_begins_from_the_key_that_is_given():
    hierarchy, _ = made("random")
    policy = lrl.export_policy(hierarchy, hierarchy.init(jax.random.key(1), 2), platforms=("cpu",))
    obs, zero = np.zeros((2, *hierarchy.obs_shape)), {"cost": 0.0}

    def act(*args):
        return np.asarray(policy(policy.init(2, *args), obs, signals=zero)[1])

    np.testing.assert_array_equal(act(7), act(jax.random.key(7)))
    np.testing.assert_array_equal(act(), act())
    assert (act(7) != act(8)).all() and (act(7) != act()).all()


def test_what_acting_does_not_need_is_not_in_the_file(tmp_path):
    hierarchy = lrl.Hierarchy([SACLevel(SAC(hidden=(128,)), buffer_size=8192)], MAZE, PARAMS)
    state = hierarchy.init(jax.random.key(0), 1)
    lrl.export_policy(hierarchy, state, tmp_path / "policy.zip", platforms=("cpu",))
    with zipfile.ZipFile(tmp_path / "policy.zip") as file:
        size = file.getinfo("weights.bin").file_size
        module = file.getinfo("step.jax").file_size
    actor = 4 * (6 * 128 + 128 * 4)  # kernels of a mean and a deviation in two dimensions
    assert actor <= size < 1.5 * actor
    assert module < 60_000


def test_what_cannot_be_exported_or_called_is_refused(tmp_path):
    hierarchy, _ = made("smoke")
    state = hierarchy.init(jax.random.key(0), 1)
    with pytest.raises(ValueError, match=r"\(PlannerLevel\) decides in chunks.*batch_size="):
        lrl.export_policy(hierarchy, state)
    random, _ = made("random")
    states = jax.vmap(lambda key: random.init(key, 1))(jax.random.split(jax.random.key(0), 2))
    with pytest.raises(ValueError, match="take_seed"):
        lrl.export_policy(random, states)
    state = random.init(jax.random.key(0), 1)

    def act(self, learner, memory, obs, ctx):
        return Decision(jax.pure_callback(lambda x: x, jnp.zeros(2), obs[:2]), memory)

    calls = dataclasses.dataclass(frozen=True)(type("Calls", (Level,), {"act": act}))()
    calling = lrl.Hierarchy([calls], MAZE, PARAMS)
    with pytest.raises(ValueError, match=r"cannot lower .*\('cpu',\) and any batch size"):
        lrl.export_policy(calling, calling.init(jax.random.key(0), 1), platforms=["cpu"])
    policy = lrl.export_policy(random, state, batch_size=2, platforms=("cpu",))
    with pytest.raises(ValueError, match="batch_size=2, got 3"):
        policy.init(3)
    memory, obs = policy.init(), np.zeros((2, *random.obs_shape))
    with pytest.raises(ValueError, match="signals"):
        policy(memory, obs)
    with pytest.raises(ValueError, match="obs has shape"):
        policy(memory, obs[:1], signals={"cost": 0.0})
    with pytest.raises(TypeError, match="first has dtype float64"):
        policy(memory, obs, first=1.0, signals={"cost": 0.0})
    with pytest.raises(FileNotFoundError):
        lrl.load_policy(tmp_path / "none.zip")
    (tmp_path / "text.zip").write_text("text")
    with pytest.raises(ValueError, match="not a policy"):
        lrl.load_policy(tmp_path / "text.zip")
