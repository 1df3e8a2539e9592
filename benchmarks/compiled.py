"""What XLA makes of the loops: kernels per iteration, and memory.

    python -m benchmarks.compiled --out benchmarks/results/compiled.json

Nothing is run. Counts are of the optimised program for the platform at hand: on a CPU a proxy for
an accelerator, where each kernel of a tick of few instances costs a launch. There XLA fuses
further, and a random number takes no loop.
"""

from __future__ import annotations

import argparse
import collections
import re
from pathlib import Path
from typing import Any

import jax

import benchmarks
import lrl_jax as lrl
from lrl_jax.algorithms import SAC
from lrl_jax.levels import ActionRepeatLevel, RandomLevel, SACLevel
from lrl_jax.setting_trees import with_settings
from lrl_jax.training import preset, sessions
from lrl_jax.training.presets import DEFAULT_PRESET
from lrl_jax.training.train import Trainer

#: Instructions that do no work.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "call"}
#: Counted by name, also where they lie in a fusion.
NAMED = ("copy", "scatter", "sort", "while", "conditional", "custom-call", "dot")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?[\w.-]+ = .*?[\])}] ([\w-]+)\(")
_CALLED = re.compile(r"(?:to_apply|body|(?:true|false)_computation)=%?([\w.-]+)")
_FUSED = re.compile(r" fusion\(.*calls=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


def computations(text: str) -> dict[str, list[str]]:
    """Instructions of each computation of an HLO module, by its name."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line)
        if head:
            lines = found.setdefault(head[1], [])
        elif line.startswith(" "):
            lines.append(line)
    return found


def _count(found: dict[str, list[str]], name: str) -> collections.Counter:
    """Instructions of a computation and of what it calls; a fusion counts as one.

    Of a nested loop one iteration, of a conditional all branches.
    """
    counts: collections.Counter = collections.Counter()
    for line in found[name]:
        opcode = _INSTRUCTION.match(line)
        if not opcode:
            continue
        counts[opcode[1]] += 1
        if fused := _FUSED.search(line):
            for inner in map(_INSTRUCTION.match, found[fused[1]]):
                if inner and inner[1] in ("scatter", "sort"):
                    counts[inner[1]] += 1
                    counts["fusion"] -= 1  # as one kernel
        if opcode[1] in ("while", "conditional", "call"):
            for called in _called(line):
                counts += _count(found, called)
    return counts


def _called(line: str) -> list[str]:
    branches = [name.strip(" %") for group in _BRANCHES.findall(line) for name in group.split(",")]
    return _CALLED.findall(line) + branches


def kernels_per_iteration(compiled: Any) -> dict[str, int]:
    """Kernels in one iteration of a program's largest loop.

    Args:
        compiled: of `jax.jit(f).lower(...).compile()`; or the text of such a module.

    Returns:
        `kernels`, all instructions that work, `fusion`, and those of `NAMED`; empty without a loop.
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    found = computations(text)
    bodies = re.findall(r" while\(.*body=%?([\w.-]+)", text)
    loops = [_count(found, body) for body in bodies]
    if not loops:
        return {}
    counts = max(loops, key=lambda x: x.total())
    kernels = sum(n for opcode, n in counts.items() if opcode not in FREE)
    return {"kernels": kernels, **{name: counts[name] for name in ("fusion", *NAMED)}}


def memory(compiled: Any) -> dict[str, int]:
    """Bytes of a compiled program: arguments, results, those of them that share, and the rest."""
    found = compiled.memory_analysis()
    return {
        name: int(getattr(found, f"{name}_size_in_bytes"))
        for name in ("argument", "output", "alias", "temp")
    }


def replay_bytes(state: lrl.HierarchyState) -> int:
    """Bytes of all levels' replay."""
    buffers = [level.buffer for level in state.levels]
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(buffers))


# ------------------------------------------------------------------------ cases


def rollout_of(levels: list[Any], n: int) -> Any:
    """A compiled rollout of levels in Maze2D-Medium."""
    hierarchy = lrl.Hierarchy(levels, lrl.make("Maze2D-Medium-v0")[0])
    carry = lrl.init_carry(hierarchy, jax.random.key(0), n)
    run: Any = jax.jit(lambda carry: lrl.rollout(hierarchy, carry, n_steps=100), donate_argnums=0)
    return run.lower(carry).compile()


def sac_update(n: int = 16) -> Any:
    """The compiled updates of SAC in its reference size, batches of 256 rows."""
    level = SACLevel(SAC(), buffer_size=10_000, warm_up_steps=0)
    hierarchy = lrl.Hierarchy([level], lrl.make("Maze2D-Medium-v0")[0])
    state = hierarchy.init(jax.random.key(0), n)
    update: Any = jax.jit(hierarchy.learn, donate_argnums=0)
    return update.lower(state).compile()


def training_chunk(more_rows: int = 1, name: str = DEFAULT_PRESET) -> dict[str, int]:
    """Memory of a preset's compiled chunk, its carry donated, and the bytes of its replay.

    Args:
        more_rows: factor on the rows that its levels store: a copy of a replay would grow with it.
        name: of the preset.
    """
    config = preset(name)
    levels: Any = config.levels
    rows = {
        f"levels.{i}.buffer_size": more_rows * level.buffer_size
        for i, level in enumerate(levels)
        if level.buffer_size
    }
    trainer = Trainer.build(with_settings(config, rows))
    carry = jax.eval_shape(trainer.init, jax.random.key(0))
    chunk: Any = trainer.hierarchy.jitted(
        sessions._chunk, trainer, trainer.config.chunks[0], False, donate=0
    )
    compiled = chunk.lower(carry).compile()
    return {**memory(compiled), "replay": replay_bytes(carry.hierarchy)}


def run(n: int = 1024) -> dict[str, Any]:
    """All cases, as JSON has them."""
    stored: Any = {"buffer_size": 100_000}
    two = [RandomLevel(), ActionRepeatLevel(4)]
    both = [RandomLevel(**stored), ActionRepeatLevel(4, **stored)]
    return {
        "two levels, a tick": kernels_per_iteration(rollout_of(two, n)),
        "two levels, both stored, a tick": kernels_per_iteration(rollout_of(both, n)),
        "SAC, an update": kernels_per_iteration(sac_update()),
        f"{DEFAULT_PRESET}, bytes of a chunk": training_chunk(),
        f"{DEFAULT_PRESET}, bytes with ten times the rows": training_chunk(10),
    }


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m benchmarks.compiled`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args(argv)
    rows = run()
    for case, values in rows.items():
        print(case, *(f"{name} {value:,}" for name, value in values.items()), sep="\n  ")
    if args.out:
        benchmarks.write_json(args.out, benchmarks.about() | {"cases": rows})


if __name__ == "__main__":
    main()
