"""Runs that version 0.1 wrote: they are refused, with the version that reads them.

`git show c42e29d:tests/data/write_checkpoints.py` is what wrote them.
"""

from pathlib import Path

import pytest

import lrl_jax as lrl
from lrl_jax import cli
from lrl_jax.levels import RandomLevel
from lrl_jax.training import PRESETS

RUNS = Path(__file__).parent / "data" / "checkpoints_0_1"
NAMES = sorted(p.name for p in RUNS.iterdir() if p.is_dir())


def test_every_preset_of_that_version_is_there():
    later = {"cartpole-ppo", "swimmer-splates", "swimmer-planner"}
    assert set(NAMES) == set(PRESETS) - later


@pytest.mark.parametrize("name", NAMES)
def test_runs_are_refused_with_the_way_out(name):
    says = r"up to commit b770d6f.* named an agent .*load it with that version, or train again"
    with pytest.raises(ValueError, match=says):
        lrl.load_run(RUNS / name)
    with pytest.raises(ValueError, match=says):
        lrl.train(None, RUNS / name, resume=True)


def test_the_command_line_says_so_too(capsys):
    for command in ("test", "resume"):
        with pytest.raises(SystemExit):
            cli.main([command, str(RUNS / "smoke")])
        assert "load it with that version" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_their_hierarchies_are_refused_with_the_way_out(name):
    hierarchy = lrl.Hierarchy([RandomLevel()], *lrl.make("Maze2D-Medium-v0"))
    with pytest.raises(ValueError, match=r"written by lrl_jax 0\.1.*commit 07b2f20"):
        hierarchy.load(RUNS / name / "checkpoints" / "final")
