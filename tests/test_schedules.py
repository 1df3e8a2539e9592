"""Schedules of environment steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lrl_jax.predictors import (
    ConstantSchedule,
    PiecewiseLinearSchedule,
    PiecewiseLogLinearSchedule,
    RampSchedule,
    as_schedule,
)
from lrl_jax.schedules import check_setting

STEPS = np.array([-5.0, 0.0, 10.0, 15.0, 20.0, 110.0, 1e7], np.float32)
TABLE = [
    (ConstantSchedule(0.3), np.full(7, 0.3)),
    (RampSchedule(1.0, 3.0, end=20, start=10), [1, 1, 1, 2, 3, 3, 3]),
    (PiecewiseLinearSchedule((10, 20, 110), (0, 1, -8)), [0, 0, 0, 0.5, 1, -8, -8]),
    (PiecewiseLogLinearSchedule((10, 20), (1e-2, 1e-4)), [1e-2] * 3 + [1e-3] + [1e-4] * 3),
]


@pytest.mark.parametrize("schedule, want", TABLE, ids=lambda x: type(x).__name__)
def test_values(schedule, want):
    got = jax.jit(schedule)(STEPS)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(schedule(15), want[3], rtol=1e-5)
    assert schedule(jnp.float32(3)).shape == ()


@pytest.mark.parametrize("schedule, _", TABLE, ids=lambda x: type(x).__name__)
def test_hashable(schedule, _):
    assert hash(schedule) == hash(eval(repr(schedule)))
    assert schedule == eval(repr(schedule))


def test_lists_become_tuples():
    assert hash(PiecewiseLinearSchedule([0, 1], [1, 2])) is not None


def test_as_schedule():
    assert as_schedule(2) == ConstantSchedule(2.0)
    assert as_schedule(np.float32(0.5)) == ConstantSchedule(0.5)
    cosine = optax.cosine_decay_schedule(1.0, 100)
    assert as_schedule(cosine) is cosine
    for bad in ("fast", None, True):
        with pytest.raises(TypeError, match="number or a schedule"):
            as_schedule(bad)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConstantSchedule(float("nan")),
        lambda: RampSchedule(0, 1, end=5, start=5),
        lambda: PiecewiseLinearSchedule((), ()),
        lambda: PiecewiseLinearSchedule((1, 2), (1,)),
        lambda: PiecewiseLinearSchedule((2, 2), (1, 1)),
        lambda: PiecewiseLogLinearSchedule((1, 2), (1, 0)),
        lambda: check_setting("lr", -1),
        lambda: check_setting("lr", float("inf")),
        lambda: check_setting("gamma", 1.5, 0, 1),
    ],
)
def test_bad_settings(make):
    with pytest.raises(ValueError, match=r"got|needs|must"):
        make()
