"""Encoders: maps from observations to latent state and context."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrl_jax.predictors import IdentityEncoder, IndexEncoder, LinearEncoder

OBS = np.arange(12, dtype=np.float32).reshape(2, 6)


def test_identity():
    state, context = IdentityEncoder((6,))(OBS)
    np.testing.assert_array_equal(state, OBS)
    assert context.shape == (2, 0)
    assert IdentityEncoder((6,)).latent_state_dim == 6


@pytest.mark.parametrize(
    "state, context, columns",
    [
        ((0, 2), (2, 4), ([0, 1], [2, 3])),
        ([(4, 6), (0, 1)], (), ([4, 5, 0], [])),
        ([0, 1], [[1, 2], [5, 6]], ([0], [1, 5])),
    ],
)
def test_index(state, context, columns):
    encoder = IndexEncoder(state=state, context=context)
    hash(encoder)
    got = encoder(OBS)
    np.testing.assert_array_equal(got[0], OBS[:, columns[0]])
    np.testing.assert_array_equal(got[1], OBS[:, columns[1]])
    assert (encoder.latent_state_dim, encoder.context_dim) == tuple(map(len, columns))
    single = encoder(OBS[1])
    np.testing.assert_array_equal(single[0], got[0][1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: IndexEncoder(state=(2, 2)),
        lambda: IndexEncoder(state=(-1, 2)),
        lambda: IndexEncoder(state=()),
        lambda: IndexEncoder(state=(0, 2, 4)),
        lambda: IndexEncoder(state=(0, 8), mapped_env_obs_shape=(6,)),
        lambda: IndexEncoder(state=(0, 2), latent_state_dim=3),
        lambda: IdentityEncoder((6,), latent_state_dim=3),
        lambda: LinearEncoder((6,), 2, constant_dims=(6,)),
        lambda: LinearEncoder((2,), 2, constant_dims=(0, 1)),
    ],
)
def test_bad_settings(make):
    with pytest.raises(ValueError):
        make()


def test_linear_masks_constant_dimensions():
    encoder = LinearEncoder((6,), 3, 2, constant_dims=(4, 5))
    hash(encoder)
    params = encoder.init(jax.random.key(0), OBS)
    state, context = encoder.apply(params, OBS)
    assert state.shape == (2, 3) and context.shape == (2, 2)

    def encode(obs):
        return encoder.apply(params, obs)

    of_state, of_context = jax.jacobian(encode)(jnp.asarray(OBS[0]))
    assert np.all(of_state[:, 4:] == 0) and np.all(np.any(np.asarray(of_state)[:, :4] != 0, 0))
    assert np.all(of_context[:, :4] == 0) and np.any(np.asarray(of_context)[:, 4:] != 0)
    np.testing.assert_allclose(encode(2 * OBS)[0], 2 * state, rtol=1e-5)


def test_linear_without_context():
    encoder = LinearEncoder((6,), 3)
    params = encoder.init(jax.random.key(0), OBS)
    assert encoder.apply(params, OBS)[1].shape == (2, 0)
