"""Prints losses of a run on whole splits: python scripts/evaluate.py RUN_DIRECTORY [--recalibrate]"""

import argparse

from makemore_pl.arguments import read, read_path
from makemore_pl.config.stored_config import load_config
from makemore_pl.errors import one_sentence


def main() -> None:
    parser = argparse.ArgumentParser(description="Whole-split losses from a checkpoint, in eval mode.")
    parser.add_argument("run_directory", type=read_path)
    parser.add_argument("--checkpoint", choices=("best", "last"), default="last")
    parser.add_argument(
        "--recalibrate",
        action="store_true",
        help="print the losses also with BatchNorm statistics of the whole training split",
    )
    parser.add_argument(
        "--accelerator", choices=("auto", "cpu", "gpu"), default="auto", help="auto: as in training, if it is here"
    )
    arguments = read(parser)
    config = load_config(arguments.run_directory)
    import torch

    from makemore_pl.evaluate import evaluate, print_losses

    torch.set_num_threads(config.trainer.threads)

    path = arguments.run_directory / "checkpoints" / f"{arguments.checkpoint}.ckpt"
    print_losses(evaluate(path, config, recalibrated=arguments.recalibrate, accelerator=arguments.accelerator))


if __name__ == "__main__":
    with one_sentence():
        main()
