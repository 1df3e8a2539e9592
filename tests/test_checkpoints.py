"""Checkpoints on disk: what is written comes back, and everything else is refused."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrl_jax import checkpoints, struct

TREE = {
    "weights": jnp.arange(6.0).reshape(2, 3),
    "half": jnp.ones((2,), jnp.bfloat16),
    "empty": jnp.zeros((0, 4), jnp.int32),
    "flags": (jnp.array([True, False]), None),
    "key": jax.random.key(3),
    "keys": jax.random.split(jax.random.key(4, impl="rbg"), 2),
    "host": np.arange(3, dtype=np.float64) / 7,
    "step": jnp.uint32(2**32 - 1),
}
META = {"answer": 42, "names": ["a", "ü"], "none": None}


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def write(path, tree=TREE, meta=META):
    checkpoints.write(path, tree, meta, kind="test")


def read(path, target=TREE):
    checkpoints.read_meta(path, kind="test")
    return checkpoints.read(path, target, kind="test")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "a"
    write(path)
    return path


@pytest.fixture
def copied(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "copied"))


def all_files(path):
    return sorted(p for p in path.rglob("*") if p.is_file())


# --- there and back -------------------------------------------------------------------------------


def test_there_and_back(written):
    back = read(written)
    assert_same(back, TREE)
    assert isinstance(back["host"], np.ndarray) and isinstance(back["weights"], jax.Array)
    assert checkpoints.read_meta(written, kind="test") == META
    abstract = jax.eval_shape(lambda x: x, TREE)
    abstract["host"] = TREE["host"]
    assert_same(read(written, abstract), TREE)


def test_a_tree_without_arrays(tmp_path):
    write(tmp_path / "a", {"nothing": None})
    assert read(tmp_path / "a", {"nothing": None}) == {"nothing": None}


def test_a_copy_elsewhere_is_as_good(copied):
    assert_same(read(copied), TREE)


def test_it_can_be_replaced(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "a", {"other": jnp.zeros(3)}, {})
    assert_same(read(tmp_path / "a", {"other": jnp.ones(3)}), {"other": jnp.zeros(3)})
    assert os.listdir(tmp_path) == ["a"]


def test_nothing_is_there(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        assert not checkpoints.exists(path)
        with pytest.raises(FileNotFoundError, match=f"no checkpoint at {path}"):
            read(path)
    assert checkpoints.names(tmp_path / "nothing") == []


def test_another_kind_is_refused(written):
    with pytest.raises(ValueError, match=f"{written} is of a test, not of a collector"):
        checkpoints.read_meta(written, kind="collector")
    with pytest.raises(ValueError, match=f"{written} is of a test, not of a collector"):
        checkpoints.read(written, TREE, kind="collector")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"weights": jnp.ones((3, 2))},
            "['weights'] was saved float32 [2, 3], here float32 [3, 2]",
        ),
        (
            {"weights": jnp.ones((2, 3), int)},
            "['weights'] was saved float32 [2, 3], here int32 [2, 3]",
        ),
        ({"more": jnp.ones(1)}, "['more'] is missing (here float32 [1])"),
        ({"flags": (jnp.ones(2, bool),) * 2}, "['flags'][1] is missing"),
        ({"flags": ()}, "['flags'][0] is unknown here (saved bool [2])"),
        ({"key": jax.random.key(3, impl="rbg")}, "['key'] was saved key<fry> [], here key<rbg> []"),
    ],
)
def test_other_leaves_are_refused_by_name(written, change, words):
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        read(written, TREE | change)
    assert str(written) in str(error.value)


def test_the_order_of_leaves_may_change_and_new_ones_have_a_default(tmp_path):
    write(tmp_path / "a", Pair(jnp.zeros(2), jnp.ones(2)))
    assert_same(read(tmp_path / "a", Riap(jnp.ones(2), jnp.ones(2))).a, jnp.zeros(2))
    new = Triple(jnp.zeros(2), jnp.ones(2), jnp.zeros(()))
    with pytest.raises(ValueError, match=r"\.c is missing"):
        read(tmp_path / "a", new)
    defaults = {".b": jnp.full(2, 7.0), ".c": jnp.float32(5.0)}
    back = checkpoints.read(tmp_path / "a", new, kind="test", defaults=defaults)
    assert_same(back, Triple(jnp.zeros(2), jnp.ones(2), jnp.float32(5.0)))


class Pair(struct.Node):
    """Two leaves."""

    a: jax.Array
    b: jax.Array


class Riap(struct.Node):
    """The same leaves, the other way round."""

    b: jax.Array
    a: jax.Array


class Triple(struct.Node):
    """One leaf more."""

    a: jax.Array
    b: jax.Array
    c: jax.Array


# --- damage ---------------------------------------------------------------------------------------


def test_every_flipped_byte_is_refused(copied):
    rng = random.Random(0)
    files = all_files(copied)
    assert len(files) >= 4
    for i in range(40):
        file = files[i % len(files)]
        whole = file.read_bytes()
        changed = bytearray(whole)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        with pytest.raises(ValueError) as error:
            read(copied)
        assert str(copied) in str(error.value) and file.name in str(error.value), file
        file.write_bytes(whole)
    assert_same(read(copied), TREE)


def test_cut_missing_and_foreign_files_are_refused(copied):
    refused = 0
    for file in all_files(copied):
        whole = file.read_bytes()
        for damage in (b"", whole[: len(whole) // 2], whole + b"x", None):
            file.unlink() if damage is None else file.write_bytes(damage)
            with pytest.raises((ValueError, FileNotFoundError)) as error:
                read(copied)
            assert str(copied) in str(error.value) and file.name in str(error.value), file
            file.write_bytes(whole)
            refused += 1
    foreign = copied / "arrays" / "d" / "0"
    foreign.write_bytes(b"")
    with pytest.raises(ValueError, match="arrays/d/0 does not belong to it"):
        read(copied)
    assert refused >= 20


def test_files_are_checked_before_they_are_parsed(copied, monkeypatch):
    import orbax.checkpoint as ocp

    monkeypatch.setattr(ocp, "StandardCheckpointer", None)  # parsing would fail otherwise
    (copied / "arrays" / "_METADATA").write_text("{}")
    with pytest.raises(ValueError, match="_METADATA has 2 bytes"):
        read(copied)


def test_another_format_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT", 4)
    monkeypatch.setattr(checkpoints, "__version__", "9.1")
    write(tmp_path / "a")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"format 4 and was written by lrl_jax 9\.1.*install that"):
        read(tmp_path / "a")


# --- where it may write ---------------------------------------------------------------------------


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in all_files(folder)}


@pytest.mark.parametrize("place", ["project", "file", "a", "b", "c", "", ".", "..", "/", "x.part"])
def test_nothing_foreign_is_replaced(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project" / "src").mkdir(parents=True)
    (tmp_path / "project" / "thesis.tex").write_text("years")
    (tmp_path / "file").write_text("x")
    (tmp_path / "a.part").mkdir()
    (tmp_path / "a.part" / "mine").write_text("mine")
    write("b")
    (tmp_path / "b" / "notes.txt").write_text("mine")
    (tmp_path / "c" / "arrays").mkdir(parents=True)
    (tmp_path / "c" / "arrays" / "data.npy").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=r"not a checkpoint|working directory|ends with"):
        write(place)
    assert snapshot(tmp_path) == before


def test_an_empty_folder_and_links_will_do(tmp_path):
    (tmp_path / "empty").mkdir()
    write(f"{tmp_path / 'empty'}/")
    link = tmp_path / "latest"
    link.symlink_to("good")  # which is not there yet
    write(link)
    write(link, TREE, {"second": 1})
    assert link.is_symlink() and sorted(os.listdir(tmp_path)) == ["empty", "good", "latest"]
    assert checkpoints.read_meta(link, kind="test") == {"second": 1}
    assert_same(read(tmp_path / "empty"), TREE)


def test_a_damaged_checkpoint_can_be_replaced(copied):
    (copied / checkpoints.MANIFEST).write_text("nonsense")
    write(copied)
    assert_same(read(copied), TREE)


# --- killed at any moment -------------------------------------------------------------------------

CHILD = """
import os, signal, sys
import jax.numpy as jnp
from lrl_jax import checkpoints

path, replace = sys.argv[1], os.replace

def dies(source, place):
    if str(place) == path:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, place)

os.replace = dies
checkpoints.write(path, {"x": jnp.ones(3)}, {"of": "child"}, kind="test")
"""


def test_a_whole_checkpoint_at_any_moment(tmp_path):
    """A program that dies before any of its changes to the disk."""
    path = tmp_path / "latest"
    x = {"x": jnp.zeros(3)}
    seen, killed = set(), True
    for moment in range(200):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        write(path, x, {"of": "parent"})
        killed = kill_through_exceptions(path, moment)
        of = checkpoints.read_meta(path, kind="test")["of"]
        value = 1.0 if of == "child" else 0.0
        assert checkpoints.exists(path) and checkpoints.names(tmp_path) == ["latest"]
        assert float(read(path, x)["x"][0]) == value
        seen.add((of, path.exists()))
        write(path, x, {"of": "next"})
        assert os.listdir(tmp_path) == ["latest"]
        if not killed:
            break
    assert not killed
    assert seen == {("parent", True), ("child", False), ("child", True)}


class Killed(BaseException):
    """Stands for kill -9 where no clean-up may follow: the functions that change the disk fail."""


def kill_through_exceptions(path, moment):
    calls = 0

    def counted(function):
        def call(*args, **keywords):
            nonlocal calls
            calls += 1
            if calls > moment:
                raise Killed
            return function(*args, **keywords)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "rmdir", "unlink", "fsync"):
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            checkpoints.write(path, {"x": jnp.ones(3)}, {"of": "child"}, kind="test")
        except Killed:
            return True
    return False


def test_killed_between_the_two_moves(tmp_path):
    path = tmp_path / "latest"
    write(path, {"x": jnp.zeros(3)})
    run = subprocess.run([sys.executable, "-c", CHILD, path], timeout=120, check=False)
    assert run.returncode == -signal.SIGKILL
    assert not path.exists() and checkpoints.exists(path)
    assert_same(read(path, {"x": jnp.zeros(3)}), {"x": jnp.ones(3)})
    write(path)
    assert_same(read(path), TREE)
    assert os.listdir(tmp_path) == ["latest"]
