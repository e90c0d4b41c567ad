"""Compares with what the lecture published: python scripts/parity.py [--names FILE] [--experiment NAME] [OVERRIDE ...]

It trains each of the lecture's networks for 200,000 steps with the lecture's word list and random numbers, and prints a
Markdown table of losses: the published ones, those of the lecture's loop with `nn.BatchNorm1d`, and ours. A second
table has the numbers that the lecture printed for each layer of its deep BatchNorm network at step 1,000; `--experiment
deep_batchnorm` prints only that, in 20 seconds. The exit code is 1 if ours differs from the lecture's loop by more than
the tolerance.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.panel import STEP, panel_rows, panel_table
from makemore_pl.arguments import read, read_path
from makemore_pl.errors import one_sentence

SCRIPTS = Path(__file__).parent
# experiment: published train and val, reference train and val, tolerance
EXPECTED = {
    # its units are mostly saturated, so rounding matters: here the lecture's loop rounds as torch.optim.SGD does
    "original": ("2.1245", "2.1682", 2.1285, 2.1661, 0.004),
    "fix_softmax": ("2.07", "2.13", 2.0696, 2.1311, 0.004),
    "fix_saturation": ("2.0356", "2.1027", 2.0356, 2.1027, 0.002),
    "kaiming": ("2.0377", "2.1070", 2.0377, 2.1070, 0.002),
    "batchnorm": ("2.0668", "2.1048", 2.0678, 2.1053, 0.002),
}
PANEL = "deep_batchnorm"


def train(experiment: str, overrides: list[str], directory: str) -> None:
    command = [sys.executable, str(SCRIPTS / "train.py"), f"+experiment={experiment}", "data=lecture"]
    command += ["seed=2147483647", "trainer=cpu", f"hydra.run.dir={directory}"]
    if subprocess.run([*command, *overrides], stdout=subprocess.DEVNULL).returncode:
        sys.exit(1)  # train.py has printed the reason


def losses(experiment: str, overrides: list[str]) -> bool:
    """Print a row; returns whether it is within the tolerance."""
    published_train, published_val, train_loss, val_loss, tolerance = EXPECTED[experiment]
    with tempfile.TemporaryDirectory() as directory:
        train(experiment, ["logger=none", "callbacks=none", *overrides], directory)
        ours = json.loads((Path(directory) / "metrics.json").read_text())
    off = max(abs(ours["train/loss"] - train_loss), abs(ours["val/loss"] - val_loss)) > tolerance
    print(
        f"| {experiment} | {ours['initial_loss']:.4f} | {published_train} / {published_val} "
        f"| {train_loss:.4f} / {val_loss:.4f} | {ours['train/loss']:.4f} / {ours['val/loss']:.4f}"
        f"{' (off)' if off else ''} |",
        flush=True,
    )
    return not off


def panel(overrides: list[str]) -> bool:
    """Print the panel; returns whether all its numbers are within the tolerance."""
    # at step 1,000 the lecture had the learning rate of its first 100,000 steps
    settings = ["logger=jsonl", "optim.schedule=constant", f"trainer.max_steps={STEP + 1}"]
    with tempfile.TemporaryDirectory() as directory:
        train(PANEL, [*settings, *overrides], directory)
        rows = panel_rows(Path(directory) / "diagnostics.jsonl")
    print(f"{PANEL}, gain 1.0, at step {STEP:,}\n\n{panel_table(rows)}", flush=True)
    return not any(row.off for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="What the lecture published, again.")
    parser.add_argument("--names", type=read_path, help="the lecture's names.txt, if it should not be fetched")
    parser.add_argument("--experiment", choices=[*EXPECTED, PANEL], action="append", help="only this; can be repeated")
    parser.add_argument("overrides", nargs="*", help="as for train.py")
    arguments = read(parser)
    overrides = arguments.overrides
    if arguments.names:
        overrides.append(f"data.path={arguments.names.resolve()}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=SCRIPTS, capture_output=True, text=True)
    print(f"{date.today()}, commit {commit.stdout.strip()}, {' '.join(overrides) or 'default settings'}\n", flush=True)
    chosen = arguments.experiment or [*EXPECTED, PANEL]
    good = True
    if tables := [experiment for experiment in chosen if experiment != PANEL]:
        print("| experiment | first loss | published train / val | lecture's loop train / val | ours train / val |")
        print("|---|---|---|---|---|", flush=True)
        for experiment in tables:
            good &= losses(experiment, overrides)
        print()
    if PANEL in chosen:
        good &= panel(overrides)
    sys.exit(not good)


if __name__ == "__main__":
    with one_sentence():
        main()
