"""The script for accelerators: what it runs, stores and takes up again; see `make rehearse`."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import Row
from benchmarks.accelerator import REHEARSAL, Found, Job, Sizes, kit, learning
from benchmarks.accelerator import __main__ as script
from lrl_jax.benchmark import Timing


def row(case: str, seconds: float = 0.5, work: float = 10.0) -> Row:
    return Row(case, Timing(1.0, seconds, (seconds,), "cpu"), work, "FLOP")


@pytest.fixture
def jobs(monkeypatch):
    """Three jobs of part 1 and one of part 4; the second fails while `broken` is in the list."""
    ran, broken = [], ["b"]

    def job(name, part, found):
        def run(sizes):
            ran.append(name)
            if name in broken:
                raise RuntimeError("out of memory")
            return found

        return Job(name, part, run)

    listed = [
        job("a", 1, Found((row("TF32 products of 8 x 8"),))),
        job("b", 1, Found(facts={"holds": True})),
        job("c", 1, Found((row("updates"),), {"products_per_second": 5.0})),
        job("large", 4, Found()),
    ]
    monkeypatch.setattr(script, "all_jobs", lambda sizes: listed)
    return ran, broken


def test_goes_on_where_it_stopped(jobs, tmp_path, capsys):
    ran, broken = jobs
    command = ["--rehearse", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="failed: b"):
        script.main(command)
    assert ran == ["a", "b", "c"]
    stored = json.loads((tmp_path / "accelerator.json").read_text())["entries"]
    assert "out of memory" in stored["b"]["facts"]["error"]
    broken.clear()
    script.main(command)
    assert ran == ["a", "b", "c", "b"]
    said = capsys.readouterr().out
    assert "0.25" in said.splitlines()[-2]  # 5 of the 20 FLOP/s of the ceiling
    script.main([*command, "--minutes", "1"])
    assert ran[-1] == "large"


def test_a_part_ends_with_its_minutes_and_files_of_others_are_refused(jobs, tmp_path, monkeypatch):
    ran, broken = jobs
    broken.clear()
    monkeypatch.setattr(script, "PART_MINUTES", -1.0)
    script.main(["--rehearse", "--out", str(tmp_path)])
    assert ran == []
    results = script.Results(tmp_path / "accelerator.json", REHEARSAL)
    results.add("a", Found(), 0.0)
    with pytest.raises(SystemExit, match="delete it"):
        script.Results(tmp_path / "accelerator.json", Sizes())


def test_all_parts_have_jobs_of_their_own_names():
    for sizes in (Sizes(), REHEARSAL):
        names = [job.name for job in script.all_jobs(sizes)]
        assert len(set(names)) == len(names)
        assert {job.part for job in script.all_jobs(sizes)} == {1, 2, 3, 4}


def test_products_are_counted_with_loops():
    a, b = jnp.ones((4, 3)), jnp.ones((3, 3))

    def loop(a, b):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ b), None), a, length=5)[0]

    assert learning.product_flops(loop, a, b) == 5 * 2 * 4 * 3 * 3
    batched = jax.vmap(loop, in_axes=(0, None))
    assert learning.product_flops(batched, jnp.ones((7, 4, 3)), b) == 7 * 5 * 2 * 4 * 3 * 3
    assert learning.product_flops(jax.jit(lambda a, b: jnp.sin(a) @ b), a, b) == 72


def test_wheels_are_what_is_missing():
    def of(*needs):
        return {"requires_dist": list(needs)}

    packages = {
        "jax": of("numpy>=1", "scipy; python_version < '3.0'"),
        "numpy": of(),
        "scipy": of(),
        "gym-nax": of("jax", "plots; extra == 'drawing'", "six"),
        "six": of(),
        "plots": of(),
    }
    there = kit.closure(packages, ["jax"], "3.12")
    assert there == {"jax", "numpy"}
    assert kit.closure(packages, ["Gym_Nax"], "3.12") - there == {"gym-nax", "six"}
    assert any(text.startswith("brax") for text in kit.requirements(["brax"]))
