"""The lecture's published losses, again: python scripts/parity.py [--names FILE] [OVERRIDE ...]

Trains each of the lecture's networks for 200,000 steps on its own word list and random numbers and prints a Markdown
table: published, what the lecture's loop gives with `nn.BatchNorm1d`, ours. Exits with 1 where ours is further from it
than the tolerance.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

SCRIPTS = Path(__file__).parent
# experiment: published train and val, reference train and val, tolerance
EXPECTED = {
    "original": ("2.1245", "2.1682", 2.1220, 2.1655, 0.004),
    "fix_softmax": ("2.07", "2.13", 2.0696, 2.1311, 0.004),
    "fix_saturation": ("2.0356", "2.1027", 2.0356, 2.1027, 0.002),
    "kaiming": ("2.0377", "2.1070", 2.0377, 2.1070, 0.002),
    "batchnorm": ("2.0668", "2.1048", 2.0678, 2.1053, 0.002),
}


def train(experiment: str, overrides: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, str(SCRIPTS / "train.py"), f"+experiment={experiment}", "data=lecture"]
        command += ["seed=2147483647", "trainer=cpu", "logger=none", "callbacks=none", f"hydra.run.dir={directory}"]
        subprocess.run([*command, *overrides], check=True, stdout=subprocess.DEVNULL)
        return json.loads((Path(directory) / "metrics.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description="The lecture's published losses, again.")
    parser.add_argument("--names", type=Path, help="the lecture's names.txt, where it should not be fetched")
    parser.add_argument("--experiment", choices=EXPECTED, action="append", help="only this one; may be repeated")
    arguments, overrides = parser.parse_known_args()
    if arguments.names:
        overrides.append(f"data.path={arguments.names.resolve()}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=SCRIPTS, capture_output=True, text=True)
    print(f"{date.today()}, commit {commit.stdout.strip()}, {' '.join(overrides) or 'default settings'}\n", flush=True)
    print("| experiment | first loss | published train / val | lecture's loop train / val | ours train / val |")
    print("|---|---|---|---|---|", flush=True)
    missed = False
    for experiment in arguments.experiment or EXPECTED:
        published_train, published_val, train_loss, val_loss, tolerance = EXPECTED[experiment]
        ours = train(experiment, overrides)
        off = max(abs(ours["train/loss"] - train_loss), abs(ours["val/loss"] - val_loss)) > tolerance
        missed |= off
        print(
            f"| {experiment} | {ours['initial_loss']:.4f} | {published_train} / {published_val} "
            f"| {train_loss:.4f} / {val_loss:.4f} | {ours['train/loss']:.4f} / {ours['val/loss']:.4f}"
            f"{' (off)' if off else ''} |",
            flush=True,
        )
    sys.exit(missed)


if __name__ == "__main__":
    main()
