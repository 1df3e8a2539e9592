"""One of two processes that train together: `python two_processes.py COORDINATOR INDEX FOLDER`.

Writes what it learned to FOLDER/INDEX.npz, and a run to FOLDER/run.
"""

import sys
from pathlib import Path

import jax


def main(coordinator: str, index: int, folder: Path) -> None:
    jax.distributed.initialize(coordinator, 2, index)

    # Only now, as JAX looks for devices when these are imported.
    import numpy as np
    from meshes import in_double_precision, learner_arrays, sac, small_config, trained

    import lrl_jax as lrl

    hierarchy = sac()
    out = learner_arrays("one", trained(hierarchy, 2, 1))
    out |= learner_arrays("fifty", trained(hierarchy, 2, 50))
    out |= learner_arrays("double", in_double_precision(2))
    np.savez(folder / f"{index}.npz", **out)
    summary = lrl.train(small_config(devices=2), folder / "run", progress=False)
    assert summary.env_steps == small_config().total_steps


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
