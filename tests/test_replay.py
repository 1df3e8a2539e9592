"""Views of stored rows against plain lists: what follows what, what is fresh, what is truncated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrl_jax import buffers
from lrl_jax.buffers import Replay, Row, rows
from lrl_jax.levels.planner_level import WithInput
from lrl_jax.spaces import Box

N, CAPACITY, N_TICKS = 3, 7, 16
SCALAR = jax.ShapeDtypeStruct((), jnp.int32)


def example(obs_shape=(2,), dtype=jnp.float32):
    scalar = jax.ShapeDtypeStruct
    row = Row(
        obs=scalar(obs_shape, dtype),
        level_input=scalar((1,), jnp.float32),
        act=scalar((), jnp.int32),
        rew=scalar((), jnp.float32),
        obs_next=scalar(obs_shape, dtype),
        terminated=scalar((), jnp.bool_),
        truncated=scalar((), jnp.bool_),
        elapsed_env_steps=SCALAR,
        n_steps_in_control=SCALAR,
        hands_back=scalar((), jnp.bool_),
        stored={"tag": SCALAR},
    )
    return rows.to_fields(row)


class Story:
    """Ticks of N instances: rows with tags, ends, stretches of control, cuts, and what is seen."""

    def __init__(self, seed, p_mask, p_end, p_cut, p_back=0.4, obs_shape=(2,), dtype=np.float32):
        rng = np.random.default_rng(seed)
        shape = (N_TICKS, N)
        self.mask = rng.random(shape) < p_mask
        self.cut = rng.random(shape) < p_cut
        ends = rng.random((2, *shape)) < p_end
        self.tag = np.arange(N_TICKS * N, dtype=np.int32).reshape(shape)
        self.terminated, self.truncated = ends
        hands_back = (rng.random(shape) < p_back) | ends[0] | ends[1]
        self.hands_back = hands_back
        self.rings = [[] for _ in range(N)]
        self.obs = np.zeros((*shape, *obs_shape), dtype)
        self.obs_next = np.zeros((*shape, *obs_shape), dtype)
        self.in_control = np.zeros(shape, np.int32)
        fresh_obs = rng.integers(0, 200, (2, *shape, *obs_shape)).astype(dtype)
        seen, control, joined = [None] * N, [0] * N, [False] * N
        for t, i in np.ndindex(shape):
            if self.cut[t, i]:
                seen[i], control[i], joined[i] = None, 0, False
            if not self.mask[t, i]:
                continue
            self.obs[t, i] = fresh_obs[0, t, i] if seen[i] is None else seen[i]
            self.obs_next[t, i] = fresh_obs[1, t, i]
            self.in_control[t, i] = control[i] + 1
            done = bool(self.terminated[t, i] or self.truncated[t, i])
            row = {"tag": int(self.tag[t, i]), "joined": joined[i], "done": done}
            self.rings[i].append(row | {"t": t, "i": i})
            seen[i] = None if done else self.obs_next[t, i]
            control[i] = 0 if hands_back[t, i] else control[i] + 1
            joined[i] = not done
        self.open = joined  # whether the next row would continue the last

    def fields(self):
        return {
            "obs": self.obs,
            "level_input": self.tag[..., None].astype(np.float32),
            "act": self.tag,
            "rew": self.tag.astype(np.float32),
            "obs_next": self.obs_next,
            "terminated": self.terminated,
            "truncated": self.truncated,
            "elapsed_env_steps": np.ones_like(self.tag),
            rows.N_STEPS: self.in_control,
            "_hands_back": self.hands_back,
            "tag": self.tag,
        }

    def kept(self):
        """Rows by tag, with the ring of each, oldest first."""
        return [ring[-CAPACITY:] for ring in self.rings]


@functools.partial(jax.jit, static_argnums=(3, 4))
def write(fields, mask, cut, obs_shape=(2,), dtype=jnp.float32):
    buffer = buffers.create(example(obs_shape, dtype), N, N * CAPACITY)

    def step(buffer, x):
        fields, mask, cut = x
        return buffers.add(buffers.cut(buffer, cut), fields, mask), None

    return jax.lax.scan(step, buffer, (fields, mask, cut))[0]


CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "p_mask": st.sampled_from([0.3, 0.8, 1.0]),
        "p_end": st.sampled_from([0.0, 0.15, 0.5]),
        "p_cut": st.sampled_from([0.0, 0.2]),
    }
)


@jax.jit
def look(buffer):
    replay = Replay(buffer)
    found = replay.sample(jax.random.key(0), 64)
    pieces = replay.pieces(jax.random.key(1), 32, 3)
    within = {name: replay.later(jax.random.key(2), found, name) for name in ("episode", "control")}
    return found, pieces, within, replay.next_input(found), replay.fresh()


@settings(max_examples=120)
@given(case=CASES)
def test_views_agree_with_plain_lists(case):
    story = Story(**case)
    kept = story.kept()
    if not any(kept):
        return
    buffer = write(story.fields(), story.mask, story.cut)
    found, (pieces, piece_mask), within, next_input, (fresh, fresh_mask) = look(buffer)
    place = {row["tag"]: (ring, k) for ring in kept for k, row in enumerate(ring)}

    def continued(ring, k):
        """Whether the row goes on: in the next one stored, or in one still to come."""
        return ring[k + 1]["joined"] if k + 1 < len(ring) else story.open[ring[k]["i"]]

    def check(tag, row_truncated):
        ring, k = place[tag]
        terminated = story.terminated[ring[k]["t"], ring[k]["i"]]
        truncated = story.truncated[ring[k]["t"], ring[k]["i"]]
        assert row_truncated == (truncated or (not continued(ring, k) and not terminated))

    tags = np.asarray(found["tag"])
    assert set(tags.tolist()) <= set(place)
    for b, tag in enumerate(tags.tolist()):
        check(tag, bool(found.truncated[b]))
        ring, k = place[tag]
        np.testing.assert_array_equal(found.obs[b], story.obs[ring[k]["t"], ring[k]["i"]])
        # The rest of the episode, and of the stretch of control, as far as it is stored.
        rest = 0
        while k + rest + 1 < len(ring) and ring[k + rest + 1]["joined"]:
            rest += 1
        stretch = 0
        while stretch < rest and not story.hands_back[ring[k + stretch]["t"], ring[k]["i"]]:
            stretch += 1
        for name, most in (("episode", rest), ("control", stretch)):
            later, steps = within[name]
            assert 0 <= int(steps[b]) <= most
            assert int(later["tag"][b]) == ring[k + int(steps[b])]["tag"]
        goes_on = k + 1 < len(ring) and ring[k + 1]["joined"]
        back = story.hands_back[ring[k]["t"], ring[k]["i"]]
        assert next_input[b, 0] == (ring[k + 1]["tag"] if goes_on and back else tag)
    for b in range(32):
        ring, k = place[int(pieces["tag"][0, b])]
        own = [ring[k]["tag"]]
        while len(own) < 3 and k + len(own) < len(ring) and ring[k + len(own)]["joined"]:
            own.append(ring[k + len(own)]["tag"])
        assert pieces["tag"][:, b].tolist() == own + own[-1:] * (3 - len(own))
        assert piece_mask[:, b].tolist() == [j < len(own) for j in range(3)]
    for i, ring in enumerate(kept):
        assert fresh["tag"][:, i][: len(ring)].tolist() == [row["tag"] for row in ring]
        assert fresh_mask[:, i].tolist() == [j < len(ring) for j in range(CAPACITY)]
    assert int(Replay(buffer).size) == len(place)


def test_later_reaches_every_row_as_often():
    """Uniform over the rest of the episode, the row itself included."""
    story = Story(seed=3, p_mask=1.0, p_end=0.0, p_cut=0.0)
    buffer = write(story.fields(), story.mask, story.cut)
    replay = Replay(buffer)
    first = replay.fresh()[0]
    first = jax.tree.map(lambda x: jnp.repeat(x[:1, 0], 7000, axis=0), first)
    _, steps = replay.later(jax.random.key(0), first)
    counts = np.bincount(np.asarray(steps), minlength=CAPACITY)
    assert len(counts) == CAPACITY and (abs(counts - 1000) < 150).all(), counts


@settings(max_examples=40)
@given(case=CASES)
def test_aligned_rings_hold_what_others_hold(case):
    """The same rows, ids and views up to the layout; and there and back again."""
    case["p_mask"] = 1.0
    story = Story(**case)
    fields, mask = story.fields(), story.mask
    plain = write(fields, mask, story.cut)

    def step(buffer, x):
        return buffers.add(buffers.cut(buffer, x[1]), x[0]), None

    aligned = buffers.align(buffers.create(example(), N, N * CAPACITY), known=True)
    aligned = jax.jit(lambda b: jax.lax.scan(step, b, (fields, story.cut))[0])(aligned)
    assert aligned.aligned and not plain.aligned
    for other in (aligned, buffers.unalign(aligned), buffers.align(plain)):
        for name, x in buffers.stored(other).items():
            np.testing.assert_array_equal(x, buffers.stored(plain)[name])
        mine, theirs = (Replay(b).fresh() for b in (other, plain))
        for name in ("tag", "obs_next", "truncated", "n_steps_in_control"):
            a, b = (np.asarray(rows_[name])[np.asarray(mask_)] for rows_, mask_ in (mine, theirs))
            np.testing.assert_array_equal(a, b)
        sampled = Replay(other).sample(jax.random.key(0), 32)
        assert set(sampled["tag"].tolist()) <= set(buffers.stored(plain)["tag"].tolist())
    again = buffers.unalign(buffers.align(plain))
    np.testing.assert_array_equal(again.words, plain.words)
    assert again.cursor.tolist() == plain.cursor.tolist()


def test_a_scalar_mask_leaves_aligned_rings_alone():
    story = Story(seed=0, p_mask=1.0, p_end=0.2, p_cut=0.0)
    fields = {k: x[0] for k, x in story.fields().items()}
    buffer = buffers.align(write(story.fields(), story.mask, story.cut))
    before = buffers.stored(buffer)
    same = buffers.add(buffer, fields, jnp.zeros((), bool))
    for name, x in buffers.stored(same).items():
        np.testing.assert_array_equal(x, before[name])
    after = buffers.stored(buffers.add(buffer, fields, jnp.ones((), bool)))
    assert after["tag"][CAPACITY - 1] == fields["tag"][0]


IMAGE = (16, 16, 4)


@settings(max_examples=30)
@given(case=CASES)
def test_frames_are_shared_and_come_back(case):
    """Images are stored once, and rows whose frames are gone are no longer there."""
    story = Story(**case, obs_shape=IMAGE, dtype=np.uint8)
    buffer = write(story.fields(), story.mask, story.cut, IMAGE, jnp.uint8)
    assert buffer.frames is not None and buffer.frames.dtype == jnp.uint8
    found = buffers.stored(buffer)
    for i, ring in enumerate(story.rings):
        tags = found["tag"][found["instance"] == i].tolist()
        assert tags == [row["tag"] for row in ring][len(ring) - len(tags) :]
        # Frames are lost to the final observations of ends, and to what cuts lead to, only.
        extra = sum(row["done"] or not row["joined"] for row in ring[-2 * CAPACITY :])
        assert len(tags) >= min(len(ring), CAPACITY, CAPACITY + 4 - extra)
    at = np.unravel_index(found["tag"], story.tag.shape)
    np.testing.assert_array_equal(found["obs"], story.obs[at])
    np.testing.assert_array_equal(found["obs_next"], story.obs_next[at])
    moved = buffers.redistribute(buffer, 2, 2 * 16)
    assert sorted(buffers.stored(moved)["tag"]) == sorted(found["tag"])


def test_a_row_of_images_costs_about_one_frame():
    n, capacity, shape = 2, 200, (84, 84, 4)
    buffer = buffers.create(example(shape, jnp.uint8), n, n * capacity)
    total = sum(x.nbytes for x in jax.tree.leaves(buffer))
    assert total / (n * capacity) <= 1.1 * 28_224

    def tick(buffer, t):
        image = jnp.broadcast_to(t.astype(jnp.uint8), (n, *shape))
        fields = {k: jnp.zeros((n, *v.shape), v.dtype) for k, v in example(shape).items()}
        fields |= {"obs": image, "obs_next": image + jnp.uint8(1)}
        fields["truncated"] = jnp.broadcast_to((t + 1) % 100 == 0, (n,))
        return buffers.add(buffer, fields), None

    # Episodes of 100 steps: all rows of a full ring are there.
    buffer = jax.jit(lambda b: jax.lax.scan(tick, b, jnp.arange(450))[0])(buffer)
    assert buffer.size.tolist() == [capacity] * n


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float16", "bool"])
def test_small_entries_share_words(dtype):
    buffer = buffers.create({"x": jax.ShapeDtypeStruct((6,), jnp.dtype(dtype))}, 1, 4)
    per_word = 4 // jnp.dtype(dtype).itemsize
    assert buffer.words.shape[-1] == -(-6 // per_word) + 1  # and the position


def test_rewards_come_last_and_relabelling_before():
    story = Story(seed=1, p_mask=1.0, p_end=0.1, p_cut=0.0)
    buffer = write(story.fields(), story.mask, story.cut)

    def rewards(found, key):
        return found.rew + found.act

    def relabel(found, key):
        return found.replace(act=found.act + 1000)

    replay = Replay(buffer, rewards=jax.tree_util.Partial(rewards))
    key = jax.random.key(0)
    plain = replay.sample(key, 8, rewarded=False)
    np.testing.assert_array_equal(plain.rew, plain["tag"])
    np.testing.assert_array_equal(replay.sample(key, 8).rew, 2 * plain["tag"])
    relabelled = replay.sample(key, 8, relabel=relabel)
    np.testing.assert_array_equal(relabelled.rew, 2 * plain["tag"] + 1000)
    pieces, _ = replay.pieces(key, 8, 2, relabel=relabel)
    np.testing.assert_array_equal(pieces.rew, 2 * pieces["tag"] + 1000)
    fresh, mask = replay.fresh()
    np.testing.assert_array_equal(fresh.rew[mask], 2 * fresh["tag"][mask])
    seen = replay.through(_doubled).sample(key, 8)
    np.testing.assert_array_equal(seen.obs, 2 * plain.obs)


def test_relabelled_rows_keep_their_input_where_control_goes_back():
    story = Story(seed=1, p_mask=1.0, p_end=0.0, p_cut=0.0, p_back=1.0)
    replay = Replay(write(story.fields(), story.mask, story.cut))
    found = replay.sample(jax.random.key(0), 16)
    stored = replay.next_input(found)
    assert (stored != found.level_input).any()
    chosen = jnp.arange(16) % 2 == 0
    told = jnp.where(chosen[:, None], found.level_input + 100, found.level_input)
    following = replay.next_input(found.replace(level_input=told))
    np.testing.assert_array_equal(following, jnp.where(chosen[:, None], told, stored))


@pytest.mark.parametrize("bootstraps", [False, True])
def test_planners_bootstrap_with_the_input_of_then(bootstraps):
    """Pieces are seen with the next row's input behind them, rows of the model with their own."""
    story = Story(seed=2, p_mask=1.0, p_end=0.1, p_cut=0.0)
    replay = Replay(write(story.fields(), story.mask, story.cut))
    seen = replay.through(WithInput(Box(-1, 1, (1,)), bootstraps))
    pieces, _ = replay.pieces(jax.random.key(0), 16, 3)
    expected = replay.next_input(pieces) if bootstraps else pieces.level_input
    mapped, _ = seen.pieces(jax.random.key(0), 16, 3)
    np.testing.assert_array_equal(mapped.obs[..., 2:], pieces.level_input)
    np.testing.assert_array_equal(mapped.obs_next[..., 2:], expected)
    rows_ = seen.sample(jax.random.key(0), 16)
    np.testing.assert_array_equal(rows_.obs_next[..., 2:], rows_.level_input)


def _doubled(found, replay):
    return found.replace(obs=2 * found.obs)


def test_errors_name_what_to_do():
    buffer = buffers.create(example(), N, N * CAPACITY)
    found = Replay(buffer).sample(jax.random.key(0), 2)
    with pytest.raises(ValueError, match='"episode" or "control"'):
        Replay(buffer).later(jax.random.key(0), found, "life")
    with pytest.raises(ValueError, match=r'needs=\("children",\)'):
        Replay(buffer).children(found, 2)
