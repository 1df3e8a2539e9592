"""Write a tiny run folder of every preset, as test data: `python tests/data/write_checkpoints.py`.

The folders in `checkpoints_0_1/` are those that version 0.1.0 wrote. Tests load them to see that
what was once saved can be read, and acts as it did. Do not write them anew with a later version:
give another one a folder of its own.

A folder holds

- `config.json` and `checkpoints/final`, as a run writes them;
- `expected.json`: what reading them must give. `leaves` has, for each leaf of the state in order
  (arrays are stored under that index), its path, shape, dtype and sum, where keys count as their
  data. `actions` are what the hierarchy decides in eval mode for `obs`, with all instances at the
  beginning of an episode.

Presets are shrunk: few instances, hidden layers of 8, buffers of at most 64 rows. Three things are
not as in a run:

- Full-size TD-MPC2 gives way to the small one, whose sizes no setting changes. So that the files
  stay small, its levels do not learn and their larger parameters repeat the first of their values,
  which compresses well.
- HalfCheetah needs MuJoCo: Gymnasium's Pendulum stands in for it.
- The preset with workers collects in one process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax.collectors import Collector, rollout
from lrl_jax.hierarchies import Hierarchy, HierarchyState
from lrl_jax.training import PRESETS
from lrl_jax.training.config import TrainConfig, to_json
from lrl_jax.training.train import Trainer

FOLDER = Path(__file__).parent / "checkpoints_0_1"
STAND_INS = {"gymnasium/HalfCheetah-v5": "gymnasium/Pendulum-v1"}
TICKS = 24
_REPEATED_ABOVE = 64  # entries that a parameter of TD-MPC2 keeps

_AGENT = {
    "hidden": (8,),
    "model_hidden": (8,),
    "num_samples": 8,
    "n_iterations": 2,
    "elite_ratio": 0.5,
    "horizon": 2,
    "subgoal_horizon": 2,
    "batch_size": 8,
    "model_batch_size": 8,
    "planner_batch_size": 8,
    "update_interval": 4,
    "planner_interval": 4,
    "skill_interval": 8,
    "n_updates": 1,
    "planner_updates": 1,
    "skill_updates": 1,
    "warm_up_steps": 8,
    "planner_warm_up": 8,
    "skill_warm_up": 8,
    "no_planning_steps": 8,
    "symmetry_steps": 16,
    "action_repeat": 2,
    "skill_steps": 3,
    "n_alternatives": 4,
    "n_modes": 2,
    "epsilon_steps": 16,
    "buffer_size": 64,
    "planner_buffer_size": 32,
    "skill_buffer_size": 64,
}
_RUN = {
    "n_env_instances": 2,
    "round_ticks": TICKS,
    "total_steps": 2 * TICKS,
    "test_interval": 2 * TICKS,
    "test_episodes": 2,
    "final_test_episodes": 2,
}


def shrink(config: TrainConfig) -> TrainConfig:
    """The settings of a preset, as small as they can be set."""
    agent = config.agent
    names = {f.name for f in dataclasses.fields(agent)}
    # What a preset leaves out, such as the symmetry-breaking start of DADS, stays out.
    tiny: dict[str, Any] = {
        name: value for name, value in _AGENT.items() if name in names and getattr(agent, name)
    }
    if getattr(agent, "backbone", None) == "tdmpc2":
        tiny["backbone"] = "tdmpc2-small"
    if getattr(agent, "subgoal_skills", 0):
        tiny["subgoal_skills"] = 2
    agent = dataclasses.replace(agent, **tiny)
    return dataclasses.replace(
        config, agent=agent, env=STAND_INS.get(config.env, config.env), **_RUN
    )


def plays_tdmpc2(config: TrainConfig) -> bool:
    """Whether a level of the agent is on TD-MPC2."""
    backbone = getattr(config.agent, "backbone", "")
    return backbone.startswith("tdmpc2") or type(config.agent).__name__ == "TDMPC2Agent"


def collect(trainer: Trainer) -> HierarchyState:
    """The state after one short chunk of training."""
    config, learn = trainer.config, not plays_tdmpc2(trainer.config)
    if trainer.on_host:
        collector = Collector(trainer.hierarchy, trainer.env)
        collector.reset(seed=config.seed)
        collector.collect(n_steps=TICKS, learn=learn)
        trainer.env.close()
        return collector.state
    carry = trainer.init(jax.random.key(config.seed))
    if learn:
        carry, _ = jax.jit(trainer.chunk)(carry)
    else:
        carry, _ = rollout(trainer.hierarchy, trainer.env, trainer.params, carry, TICKS)
    return carry.hierarchy


def repeat_parameters(state: HierarchyState) -> HierarchyState:
    """Large leaves of the lowest level's learner as repetitions of their first entries."""

    def repeated(x: jax.Array) -> jax.Array:
        if x.size <= _REPEATED_ABOVE or not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jnp.asarray(np.resize(np.asarray(x).ravel()[:_REPEATED_ABOVE], x.shape))

    last = state.levels[-1]
    last = last.replace(learner=jax.tree.map(repeated, last.learner))
    return state.replace(levels=(*state.levels[:-1], last))


def expected(hierarchy: Hierarchy, state: HierarchyState) -> dict[str, Any]:
    """What reading the checkpoint must give; see the module."""
    leaves = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        dtype = str(leaf.dtype)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        total = float(np.asarray(leaf, np.float64).sum())
        leaves.append([jax.tree_util.keystr(path), list(leaf.shape), dtype, total])
    n = state.n_env_instances
    shape = (n, *hierarchy.obs_shape)
    obs = np.linspace(0.1, 0.9, math.prod(shape), dtype=np.float32).reshape(shape)
    playing = hierarchy.eval()
    _, actions = playing.get_action(playing.reset(state), obs)
    return {
        "n_total_env_steps": int(state.n_total_env_steps),
        "obs": obs.tolist(),
        "actions": np.asarray(actions).tolist(),
        "leaves": leaves,
    }


def write(name: str, folder: Path = FOLDER) -> Path:
    """Write the run folder of a preset and return it; one that is there is replaced."""
    config = shrink(PRESETS[name][1])
    trainer = Trainer.build(config)
    state = collect(trainer)
    if plays_tdmpc2(config):
        state = repeat_parameters(state)
    run = folder / name
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    (run / "config.json").write_text(to_json(config) + "\n")
    trainer.hierarchy.save(state, run / "checkpoints" / "final")
    # It holds nothing but the place that the checkpoint was written to, and is never read.
    (run / "checkpoints" / "final" / "arrays" / "commit_success.txt").unlink(missing_ok=True)
    about = expected(trainer.hierarchy, state)
    lines = ",\n".join("  " + json.dumps(leaf) for leaf in about.pop("leaves"))
    head = json.dumps(about)[:-1]
    (run / "expected.json").write_text(f'{head}, "leaves": [\n{lines}\n]}}\n')
    return run


def main() -> None:
    """Write the presets that are named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="*", help="names of presets; all if none is given")
    for name in parser.parse_args().presets or PRESETS:
        run = write(name)
        size = sum(p.stat().st_size for p in run.rglob("*") if p.is_file())
        print(f"{name}: {size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
