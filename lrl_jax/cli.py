"""Command line: `lrl-jax train [preset]` and `lrl-jax test RUN`."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from lrl_jax.training import DEFAULT_PRESET, PRESETS, TrainConfig, load_trainer, run_training
from lrl_jax.training.run import test_episodes


@dataclasses.dataclass(frozen=True)
class Test:
    """Evaluate the checkpoint of a run.

    Attributes:
        run: the run folder.
        episodes: whole episodes, one in each of as many instances.
        seed: of the test.
    """

    run: Annotated[Path, tyro.conf.Positional]
    episodes: int = 256
    seed: int = 0


def train(config: TrainConfig, name: str, out: Path | None, quiet: bool) -> None:
    """Run a preset and print what was reached and where things are."""
    run = out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    print(f"training {name} on {config.env}: {config.total_steps} environment steps -> {run}")
    summary = run_training(config, run, progress=not quiet)
    print(
        f"\nsuccess {summary.test_success:.3f}, return {summary.test_return:.1f} over "
        f"{summary.test_episodes} test episodes after {summary.env_steps} environment steps\n"
        f"training took {summary.train_seconds:.0f} s with compilation and interim tests "
        f"({summary.steps_per_second:.0f} environment steps/s while training)\n"
        f"in {run}: learning_curve.png, paths.png, rollout.gif, metrics.csv, tensorboard/, "
        f"checkpoints/final\n"
        f"look again with: lrl-jax test {run}"
    )


def test(args: Test) -> None:
    """Evaluate a run's checkpoint and print the result."""
    trainer, state = load_trainer(args.run)
    episodes = test_episodes(trainer, state, args.episodes, args.seed)
    print(
        f"{args.run}: success {np.mean(episodes.success):.3f} "
        f"(at the last step {np.mean(episodes.success_at_end):.3f}), return "
        f"{np.mean(episodes.episode_return):.1f} +- {np.std(episodes.episode_return):.1f} over "
        f"{args.episodes} episodes"
    )


def _usage() -> str:
    lines = [
        "usage: lrl-jax train [PRESET] [--out FOLDER] [--quiet] [settings; --help lists them]",
        "       lrl-jax test RUN [--episodes N] [--seed N]",
        "",
        "presets:",
    ]
    for name, (about, _) in PRESETS.items():
        default = " (default)" if name == DEFAULT_PRESET else ""
        lines.append(f"  {name:24s} {about}{default}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Entry point; errors of the user end with one line and exit code 2."""
    args = sys.argv[1:] if argv is None else list(argv)
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return
    command, *rest = args
    try:
        if command == "train":
            _train_command(rest)
        elif command == "test":
            test(tyro.cli(Test, args=rest, prog="lrl-jax test"))
        else:
            raise ValueError(f"unknown command {command!r}: use train or test.\n{_usage()}")
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        print(f"lrl-jax: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _train_command(args: list[str]) -> None:
    name = DEFAULT_PRESET
    if args and not args[0].startswith("-"):
        name, *args = args
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: use one of {', '.join(PRESETS)}.")
    out, quiet = None, "--quiet" in args
    args = [a for a in args if a != "--quiet"]
    # "--out=FOLDER", as tyro takes its settings, is "--out FOLDER".
    args = [part for a in args for part in (a.split("=", 1) if a.startswith("--out=") else [a])]
    if "--out" in args:
        i = args.index("--out")
        if i + 1 >= len(args):
            raise ValueError("--out needs a folder.")
        out = Path(args[i + 1])
        args = args[:i] + args[i + 2 :]
    about, default = PRESETS[name]
    config = tyro.cli(
        TrainConfig, default=default, args=args, prog=f"lrl-jax train {name}", description=about
    )
    train(config, name, out, quiet)
