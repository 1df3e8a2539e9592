"""What a type checker in basic mode tells a user, of a script that is right and one that is not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKER = shutil.which("basedpyright", path=Path(sys.executable).parent)

RIGHT = """
import dataclasses
from typing import assert_type

import jax
import jax.numpy as jnp

import lrl_jax as lrl
from lrl_jax.algorithms import SAC
from lrl_jax.collectors import CollectStats, LevelTransitions, Transitions
from lrl_jax.levels import ActionRepeatLevel, Decision, Level, SACLevel


@dataclasses.dataclass(frozen=True)
class Still(Level):
    control_interval: int | None = 10

    def input_space(self):
        return lrl.spaces.Box(-1, 1, (2,))

    def act(self, learner, memory, obs, ctx):
        return Decision(jnp.zeros(2), memory)


@dataclasses.dataclass(frozen=True)
class Duck:
    def act(self, learner, memory, obs, ctx):
        return Decision(jnp.zeros(2), memory)


env, params = lrl.make("Maze2D-Medium-v0")
hierarchy = lrl.Hierarchy([SACLevel(SAC(), buffer_size=512), Still()], env, params)
lrl.Hierarchy([Duck()], env, params)
lrl.Hierarchy([SACLevel(SAC()), ActionRepeatLevel(4)], env, params)
state = hierarchy.init(jax.random.key(0), 4)
state, action = hierarchy.get_action(state, jnp.zeros((4, 6)))
collector = lrl.Collector(hierarchy, n_env_instances=4, state=state)
assert_type(collector.collect(n_steps=4), CollectStats)
assert_type(collector.collect(4, learn=True, verbose=True), CollectStats)
both = collector.collect(n_total_steps=4, record_transitions=True)
assert_type(both, tuple[CollectStats, Transitions])
levels = collector.collect(n_steps=4, record_transitions="levels")
assert_type(levels, tuple[CollectStats, Transitions, tuple[LevelTransitions, ...]])
stats, transitions = collector.collect(n_steps=4, record_transitions=True)
print(stats.returns.mean(), stats["return"], transitions.obs.shape)
config = lrl.TrainConfig((SACLevel(SAC()),), "Pendulum-v1", loggers=("csv",), stop_at=-200)
summary = lrl.train(config, "runs/x", loggers=[lrl.loggers.CSV("other.csv")])
print(summary.test_return + 1.0, lrl.compare("runs/x").draw("x.png").name)
"""

#: (what is wrong, line that says so)
WRONG = [
    ("type of a level", "lrl.Hierarchy([SAC()], env, params)  # 1"),
    ("missing argument", "hierarchy.get_action(hierarchy.init())  # 2"),
    ("attribute of stats", "print(stats.retruns)  # 3"),
    ("return of act", "lrl.Hierarchy([Wrong()], env, params)  # 4"),
]
MISTAKES = """
import dataclasses

import jax
import jax.numpy as jnp

import lrl_jax as lrl
from lrl_jax.algorithms import SAC
from lrl_jax.levels import Level, RandomLevel


@dataclasses.dataclass(frozen=True)
class Wrong(Level):
    def act(self, learner, memory, obs, ctx):
        return jnp.zeros(2)


env, params = lrl.make("Maze2D-Medium-v0")
hierarchy = lrl.Hierarchy([RandomLevel()], env, params)
stats = lrl.Collector(hierarchy).collect(n_steps=4)
""" + "\n".join(line for _, line in WRONG)


def errors_in(folder: Path, **scripts: str) -> dict[str, list[tuple[str, str]]]:
    """(line, message) of what the checker finds in each script."""
    for name, script in scripts.items():
        (folder / f"{name}.py").write_text(script)
    settings = {"typeCheckingMode": "basic", "include": ["*.py"], "extraPaths": [str(ROOT)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [CHECKER, "--outputjson", "--level", "error", "--pythonpath", sys.executable]
    ended = subprocess.run(
        [*command, "--project", str(folder)], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode in (0, 1), ended.stderr
    found = {name: [] for name in scripts}
    for each in json.loads(ended.stdout)["generalDiagnostics"]:
        name = Path(each["file"]).stem
        line = scripts[name].splitlines()[each["range"]["start"]["line"]]
        found[name].append((line, each["message"]))
    return found


@pytest.mark.skipif(CHECKER is None, reason="basedpyright is not installed")
def test_a_type_checker_finds_what_is_wrong_and_nothing_else(tmp_path):
    found = errors_in(tmp_path, right=RIGHT, wrong=MISTAKES)
    assert not found["right"]
    assert {line for line, _ in found["wrong"]} == {line for _, line in WRONG}, found["wrong"]
