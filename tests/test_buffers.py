"""Replay rings against plain lists, packing bit for bit, sampling, pieces of trajectories."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from lrl_jax import buffers
from lrl_jax.buffers import packing

SCALAR = jax.ShapeDtypeStruct((), jnp.int32)
EXAMPLE = {
    "tag": SCALAR,
    "obs": jax.ShapeDtypeStruct((2,), jnp.float32),
    "terminated": jax.ShapeDtypeStruct((), jnp.bool_),
    "truncated": jax.ShapeDtypeStruct((), jnp.bool_),
}


class PlainRings:
    """Rings as lists of rows, oldest first; a row is (tag, ends the episode, begins anew)."""

    def __init__(self, n: int, capacity: int):
        self.rings: list[list[tuple[int, bool, bool]]] = [[] for _ in range(n)]
        self.capacity = capacity

    def add(self, i: int, tag: int, ends: bool, first: bool) -> None:
        self.rings[i] = [*self.rings[i], (tag, ends, first)][-self.capacity :]

    def tags(self) -> list[int]:
        return [tag for ring in self.rings for tag, _, _ in ring]

    def piece(self, tag: int, n_steps: int) -> list[int]:
        """Tags of the piece that starts at a row."""
        ring = next(r for r in self.rings if tag in [row[0] for row in r])
        start = [row[0] for row in ring].index(tag)
        piece = [ring[start]]
        for row in ring[start + 1 : start + n_steps]:
            if piece[-1][1] or row[2]:
                break
            piece.append(row)
        return [row[0] for row in piece]


@functools.partial(jax.jit, static_argnums=0)
def write_all(shape, inputs):
    """Write [T, n] rows into fresh rings of (n, capacity)."""
    n, capacity = shape
    buffer = buffers.create(EXAMPLE, n, n * capacity)

    def step(buffer, x):
        x = dict(x)
        mask, first = x.pop("mask"), x.pop("first")
        return buffers.add(buffers.cut(buffer, first & mask), x, mask), None

    return jax.lax.scan(step, buffer, inputs)[0]


def random_rows(n: int, seed: int, p_mask: float, p_end: float, n_ticks: int = 12):
    """Inputs of `write_all`; tags are unique."""
    rng, shape = np.random.default_rng(seed), (n_ticks, n)
    ends = rng.random((2, *shape)) < p_end
    return {
        "tag": np.arange(n_ticks * n, dtype=np.int32).reshape(shape),
        "obs": rng.normal(size=(*shape, 2)).astype(np.float32),
        "terminated": ends[0],
        "truncated": ends[1],
        "first": rng.random(shape) < p_end / 2,
        "mask": rng.random(shape) < p_mask,
    }


def both(shape, **case):
    """The rings and the plain ones after the same rows."""
    inputs = random_rows(shape[0], **case)
    plain = PlainRings(*shape)
    for t, i in np.ndindex(inputs["mask"].shape):
        if inputs["mask"][t, i]:
            ends = inputs["terminated"][t, i] or inputs["truncated"][t, i]
            plain.add(i, int(inputs["tag"][t, i]), bool(ends), bool(inputs["first"][t, i]))
    return write_all(shape, inputs), plain, inputs


SHAPES = st.sampled_from([(1, 4), (2, 3), (3, 1), (4, 5), (2, 20)])  # n, capacity
CASES = {
    "seed": st.integers(0, 2**32 - 1),
    "p_mask": st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    "p_end": st.sampled_from([0.0, 0.2, 0.7]),
}


@settings(max_examples=150)
@given(shape=SHAPES, case=st.fixed_dictionaries(CASES))
def test_rows_order_and_wrap(shape, case):
    buffer, plain, inputs = both(shape, **case)
    rows = buffers.stored(buffer)
    assert rows["tag"].tolist() == plain.tags()
    assert rows["instance"].tolist() == [i for i, r in enumerate(plain.rings) for _ in r]
    assert buffer.size.tolist() == [len(r) for r in plain.rings]
    assert int(buffers.n_rows(buffer)) == len(plain.tags())
    written = inputs["mask"].sum(0)
    assert buffer.cursor.tolist() == (written % shape[1]).tolist()
    at = np.unravel_index(rows["tag"], inputs["mask"].shape)
    for name in ("obs", "terminated", "truncated"):
        np.testing.assert_array_equal(rows[name], inputs[name][at])


@settings(max_examples=80)
@given(shape=SHAPES, n_steps=st.sampled_from([1, 3]), case=st.fixed_dictionaries(CASES))
def test_pieces_cross_nothing(shape, n_steps, case):
    """No piece runs over an episode's end, a reset, the write cursor or another instance."""
    buffer, plain, _ = both(shape, **case)
    if n_steps > shape[1]:
        with pytest.raises(ValueError, match=f"{n_steps * shape[0]} or more"):
            sample_pieces(buffer, n_steps)
        return
    ids, length, mask, tags = map(np.asarray, sample_pieces(buffer, n_steps))
    assert ids.shape == (n_steps, 64) and length.shape == (64,) and mask.shape == (64, n_steps)
    assert ids.dtype == length.dtype == jnp.int32 and mask.dtype == jnp.float32
    if not plain.tags():
        assert not mask.any() and not length.any()
        return
    for b in range(64):
        expected = plain.piece(int(tags[0, b]), n_steps)
        assert int(length[b]) == len(expected)
        assert mask[b].tolist() == [float(k < len(expected)) for k in range(n_steps)]
        padding = expected[-1:] * (n_steps - len(expected))
        assert tags[:, b].tolist() == expected + padding


@functools.partial(jax.jit, static_argnums=1)
def sample_pieces(buffer, n_steps):
    out = buffers.sample_partial_trajectories(buffer, jax.random.key(1), 64, n_steps)
    return *out, buffers.gather(buffer, out[0])["tag"]


@settings(max_examples=80)
@given(shape=SHAPES, case=st.fixed_dictionaries(CASES))
def test_rows_after_reach_to_the_end_of_the_trajectory(shape, case):
    buffer, plain, _ = both(shape, **case)
    if not plain.tags():
        return
    after, tags, last = map(np.asarray, look_ahead(buffer))
    for count, tag, end in zip(after, tags, last, strict=True):
        piece = plain.piece(int(tag), shape[1])
        assert (count, end) == (len(piece) - 1, piece[-1])


@jax.jit
def look_ahead(buffer):
    ids = buffers.sample_ids(buffer, jax.random.key(2), 64)
    after = buffers.rows_after(buffer, ids)
    ends = buffers.ids_after(buffer, ids, after)
    return after, buffers.gather(buffer, ids)["tag"], buffers.gather(buffer, ends)["tag"]


@settings(max_examples=25)
@given(shape=SHAPES, cut=st.sampled_from([4, 8]), case=st.fixed_dictionaries(CASES))
def test_rows_taken_out_and_written_elsewhere(shape, cut, case):
    """In two parts, with trajectories that go on over the seam, or begin anew without an end."""
    buffer, _, inputs = both(shape, **case)
    n, capacity = shape
    source = buffers.create(EXAMPLE, n, 20 * n)
    written = buffers.create(EXAMPLE, n, n * capacity)
    for part in (slice(0, cut), slice(cut, None)):
        for t in range(12)[part]:
            row = {name: x[t] for name, x in inputs.items()}
            mask, first = row.pop("mask"), row.pop("first")
            source = buffers.add(buffers.cut(source, first & mask), row, mask)
        rows, source = buffers.drain(source)
        assert not int(buffers.n_rows(source))
        written = buffers.extend(written, rows)
    expected = buffers.stored(buffer)
    for name, value in buffers.stored(written).items():
        np.testing.assert_array_equal(value, expected[name])
    if len(expected["tag"]):
        np.testing.assert_array_equal(look_ahead(written), look_ahead(buffer))


@settings(max_examples=60)
@given(
    shape=SHAPES,
    n_new=st.integers(1, 5),
    size_new=st.sampled_from([5, 8, 17]),
    case=st.fixed_dictionaries(CASES),
)
def test_redistribute(shape, n_new, size_new, case):
    """The oldest rows go, the others stay, and what is joined was joined before."""
    buffer, plain, _ = both(shape, **case)
    new = buffers.redistribute(buffer, n_new, size_new)
    capacity = size_new // n_new
    assert new.words.shape[:2] == (capacity, n_new)
    tags = buffers.stored(new)["tag"].tolist()
    ages = {t: k for r in plain.rings for k, (t, _, _) in enumerate(reversed(r))}
    assert len(tags) == len(set(tags)) == min(len(plain.tags()), capacity * n_new)
    dropped = set(plain.tags()) - set(tags)
    assert set(tags) <= set(plain.tags())
    assert not dropped or min(ages[t] for t in dropped) >= max(ages[t] for t in tags)
    # Whatever a piece joins now was joined before.
    first = next(f for f in new.layout if f.name == "_position").start
    words, by_ring = np.asarray(new.words), {}
    for ring, tag in zip(buffers.stored(new)["instance"], tags, strict=True):
        by_ring.setdefault(ring, []).append(tag)
    for ring, own in by_ring.items():
        assert words[0, ring, first] == 0
        for k, (a, b) in enumerate(zip(own, own[1:], strict=False), start=1):
            if words[k, ring, first]:
                assert words[k, ring, first] == words[k - 1, ring, first] + 1
                source = next(r for r in plain.rings if b in [row[0] for row in r])
                order = [row[0] for row in source]
                assert order.index(b) == order.index(a) + 1
    # The next row goes behind the newest of its ring.
    assert new.cursor.tolist() == (np.asarray(new.size) % capacity).tolist()


def bits_of(dtype, rng):
    """Random bit patterns: NaNs with payloads, infinities, denormals, negative zeros."""
    dtype = np.dtype(dtype)
    if dtype == np.bool_:
        return rng.random((6, 3)) < 0.5
    values = rng.integers(0, 256, (6, 3, dtype.itemsize), np.uint8).view(dtype)[..., 0]
    if not np.issubdtype(dtype, np.integer):
        special = np.array([np.nan, -np.inf, -0.0], dtype)
        values[0] = special
        quiet = np.array([np.nan], dtype).view(f"u{dtype.itemsize}")
        values[1] = (quiet + np.arange(1, 4, dtype=quiet.dtype)).view(dtype)
    return values


DTYPES = ["float32", "int32", "uint32", "bool", "float16", ml_dtypes.bfloat16, "int8", "uint16"]


@pytest.mark.parametrize("dtype", [*DTYPES, "float64", "int64"], ids=str)
def test_packing_changes_no_bit(dtype):
    wide = np.dtype(dtype).itemsize == 8
    with jax.enable_x64(wide):
        value = bits_of(dtype, np.random.default_rng(0))
        # Neighbours of other dtypes, so that offsets matter.
        rows = {
            "before": jnp.arange(6, dtype=jnp.float16),
            "value": jnp.asarray(value),
            "matrix": jnp.arange(24, dtype=jnp.int32).reshape(6, 2, 2),
            "nothing": jnp.zeros((6, 0), jnp.float32),
        }
        assert rows["value"].dtype == value.dtype
        example = {k: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for k, v in rows.items()}
        layout = packing.make_layout(example)
        words = jax.jit(packing.pack, static_argnums=0)(layout, rows)
        assert words.dtype == jnp.uint32
        back = jax.jit(packing.unpack, static_argnums=0)(layout, words)
        buffer = buffers.add(buffers.create(example, 6, 12), rows)
        pieces, lengths, _ = buffers.sample_partial_trajectories(buffer, jax.random.key(0), 5, 2)
        for ids in (buffers.sample_ids(buffer, jax.random.key(0), 5), pieces, lengths):
            assert ids.dtype == jnp.int32
        for result in (back, buffers.stored(buffer), buffers.gather(buffer, jnp.arange(6))):
            for name, x in rows.items():
                assert result[name].dtype == x.dtype and result[name].shape == x.shape
                assert np.asarray(result[name]).tobytes() == np.asarray(x).tobytes(), name


def test_sampling_is_uniform_over_stored_rows():
    """Rings of different fill, one wrapped, one empty: every stored row is as likely."""
    n, capacity, draws = 4, 6, 40_000
    inputs = random_rows(n, seed=0, p_mask=1.0, p_end=0.3, n_ticks=10)
    inputs["mask"] = np.arange(10)[:, None] < np.array([10, 2, 0, 5])
    buffer = write_all((n, capacity), inputs)
    total = int(buffers.n_rows(buffer))
    assert total == 6 + 2 + 0 + 5
    expected = np.sort(buffers.stored(buffer)["tag"])
    pieces = jax.jit(buffers.sample_partial_trajectories, static_argnums=(2, 3))
    for ids in (
        jax.jit(buffers.sample_ids, static_argnums=2)(buffer, jax.random.key(3), draws),
        pieces(buffer, jax.random.key(4), draws, 3)[0][0],
    ):
        tags = np.asarray(buffers.gather(buffer, ids)["tag"])
        values, counts = np.unique(tags, return_counts=True)
        np.testing.assert_array_equal(values, expected)
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_clear_forgets_rows():
    buffer, _, _ = both((2, 3), seed=0, p_mask=1.0, p_end=0.0)
    cleared = buffers.clear(buffer)
    assert int(buffers.n_rows(cleared)) == 0
    assert buffers.stored(cleared)["tag"].shape == (0,)
    assert buffers.stored(cleared)["obs"].shape == (0, 2)


def test_writes_in_place():
    """With a donated buffer nothing is copied: the storage stays where it is."""
    buffer = buffers.create(EXAMPLE, 2, 8)
    rows = {"tag": jnp.arange(2), "obs": jnp.ones((2, 2))}
    rows |= {"terminated": jnp.zeros(2, bool), "truncated": jnp.zeros(2, bool)}
    add = jax.jit(buffers.add, donate_argnums=0)
    where = buffer.words.unsafe_buffer_pointer()
    for mask in ([True, False], [False, False], [True, True]):
        buffer = add(buffer, rows, jnp.asarray(mask))
        assert buffer.words.unsafe_buffer_pointer() == where
    assert add._cache_size() == 1


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: buffers.create(EXAMPLE, 8, 7), ValueError, ("buffer_size=7", "8", ">= 8")),
        (lambda: buffers.create(EXAMPLE, 0, 7), ValueError, ("n_env_instances", "0")),
        (lambda: buffers.create(EXAMPLE, 2, -4), ValueError, ("buffer_size=-4",)),
        (
            lambda: buffers.create({"key": jax.random.key(0)}, 2, 4),
            TypeError,
            ("'key'", "plain numbers"),
        ),
        (
            lambda: buffers.add(buffers.create({"a": SCALAR}, 2, 4), {"b": jnp.zeros(2)}),
            ValueError,
            ("missing ['a']", "unknown ['b']"),
        ),
        (
            lambda: buffers.add(buffers.create({"a": SCALAR}, 2, 4), {"a": jnp.zeros((2, 3))}),
            ValueError,
            ("'a'", "(2, 3)"),
        ),
        (
            lambda: buffers.redistribute(buffers.create({"a": SCALAR}, 2, 4), 5, 4),
            ValueError,
            ("buffer_size=4", "5 instances"),
        ),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words), str(caught.value)
