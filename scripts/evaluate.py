"""Whole-split losses of a run: python scripts/evaluate.py RUN_DIRECTORY [--checkpoint best|last] [--recalibrate]"""

import argparse
from pathlib import Path

from makemore_pl.config.stored_config import load_config
from makemore_pl.errors import one_sentence


def main() -> None:
    parser = argparse.ArgumentParser(description="Whole-split losses from a checkpoint, in eval mode.")
    parser.add_argument("run_directory", type=Path)
    parser.add_argument("--checkpoint", choices=("best", "last"), default="last")
    parser.add_argument(
        "--recalibrate",
        action="store_true",
        help="also with BatchNorm's running statistics replaced by those of the whole training split",
    )
    parser.add_argument(
        "--accelerator", choices=("auto", "cpu", "gpu"), default="auto", help="auto: what trained it, if it is here"
    )
    arguments = parser.parse_args()
    config = load_config(arguments.run_directory)
    import torch

    from makemore_pl.evaluate import evaluate, print_losses

    torch.set_num_threads(config.trainer.threads)

    path = arguments.run_directory / "checkpoints" / f"{arguments.checkpoint}.ckpt"
    print_losses(evaluate(path, config, recalibrated=arguments.recalibrate, accelerator=arguments.accelerator))


if __name__ == "__main__":
    with one_sentence():
        main()
