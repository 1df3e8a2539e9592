"""Runs that version 0.1 wrote: they are refused, with the version that reads them."""

from pathlib import Path

import pytest

import lrl_jax as lrl
from lrl_jax.training import PRESETS

RUNS = Path(__file__).parent / "data" / "checkpoints_0_1"


def test_every_preset_of_that_version_is_there():
    assert {run.name for run in RUNS.iterdir() if run.is_dir()} >= {
        name for name in PRESETS if name != "smoke"
    } - {name for name in PRESETS if "ppo" in name}


@pytest.mark.parametrize("run", sorted(p.name for p in RUNS.iterdir() if p.is_dir()))
def test_they_are_refused_with_the_way_out(run):
    with pytest.raises(ValueError, match=r"written by lrl_jax 0\.1.*commit 07b2f20"):
        lrl.load_run(RUNS / run)
