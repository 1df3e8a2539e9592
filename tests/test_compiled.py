"""What XLA makes of the loops: no copies of replay, and how kernels are counted."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from tiny import tiny

from benchmarks.compiled import kernels_per_iteration, memory, replay_bytes
from lrl_jax.training import sessions
from lrl_jax.training.train import Trainer


@pytest.mark.parametrize("name", ["pendulum-sac", "smoke"])
def test_training_writes_to_replay_in_place(name):
    trainer = Trainer.build(tiny(name, **{"levels.0.buffer_size": 500_000}))
    carry = jax.eval_shape(trainer.init, jax.random.key(0))
    replay = replay_bytes(carry.hierarchy)
    assert replay > 20_000_000

    chunk: Any = trainer.hierarchy.jitted(sessions._chunk, trainer, 1, False, donate=0)
    donated = memory(chunk.lower(carry).compile())
    assert donated["alias"] >= replay and donated["temp"] < replay / 10
    # All of the carry is given back in its own place.
    assert donated["argument"] - donated["alias"] < 1000


MODULE = """
%fused (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %b = f32[8]{0} sine(%a)
  ROOT %c = f32[8]{0} multiply(%b, %b)
}

%written (a: f32[8], b: s32[4]) -> f32[8] {
  %a.1 = f32[8]{0} parameter(0)
  %b.1 = s32[4]{0} parameter(1)
  ROOT %c.1 = f32[8]{0} scatter(%a.1, %b.1, %a.1), to_apply=%add
}

%inner (loop: (s32[], f32[8])) -> (s32[], f32[8]) {
  %loop = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%loop), index=1
  %y = f32[8]{0} sort(%x), dimensions={0}
  ROOT %t = (s32[], f32[8]{0}) tuple(%x, %y)
}

%branch (x: f32[8]) -> f32[8] {
  %x.1 = f32[8]{0} parameter(0)
  ROOT %y.1 = f32[8]{0} copy(%x.1)
}

%outer (loop: (s32[], f32[8])) -> (s32[], f32[8]) {
  %loop.1 = (s32[], f32[8]{0}) parameter(0)
  %x.2 = f32[8]{0} get-tuple-element(%loop.1), index=1
  %y.2 = f32[8]{0} fusion(%x.2), kind=kLoop, calls=%fused, metadata={op_name="while(x)"}
  %z.2 = f32[8]{0} fusion(%y.2, %x.2), kind=kLoop, calls=%written
  %w.2 = (s32[], f32[8]{0}) while(%loop.1), condition=%test, body=%inner
  %v.2 = f32[8]{0} conditional(%x.2), branch_computations={%branch, %branch}
  ROOT %t.2 = (s32[], f32[8]{0}) tuple(%x.2, %v.2)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %w.3 = (s32[], f32[8]{0}) while(%x), condition=%test, body=%outer
  %w.4 = (s32[], f32[8]{0}) while(%x), condition=%test, body=%inner
}
"""


def test_kernels_of_the_largest_loop_are_counted():
    expected = {"fusion": 1, "copy": 2, "scatter": 1, "sort": 1, "while": 1, "conditional": 1}
    counts = kernels_per_iteration(MODULE)
    assert counts == {"kernels": 7, **expected, "custom-call": 0, "dot": 0}


def test_of_a_program():
    def loop(x):
        return jax.lax.fori_loop(0, 5, lambda i, x: jnp.sort(jnp.sin(x)), x)

    compiled = jax.jit(loop).lower(jnp.ones(8)).compile()
    counts = kernels_per_iteration(compiled)
    assert counts["sort"] == 1 and counts["while"] == 0 and counts["kernels"] >= 2
    assert kernels_per_iteration(jax.jit(jnp.sin).lower(1.0).compile()) == {}
