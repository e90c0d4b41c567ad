"""Trains one network, or a sweep of them: python scripts/train.py +experiment=kaiming"""

import math
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from makemore_pl.arguments import read_hydra
from makemore_pl.config import resolve
from makemore_pl.config.choices import refuse_several
from makemore_pl.errors import hydra_raises, is_mistake, one_sentence
from makemore_pl.running.signals import end_at_once
from makemore_pl.sweep.job import is_job, run_job
from makemore_pl.sweep.launch import launch

ended: list[BaseException] = []
"""The error that a single run has ended with. It is raised outside of Hydra, which would print another line first."""


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(raw: DictConfig) -> float:
    if is_job():
        return run_job(raw)
    try:
        refuse_several(HydraConfig.get().overrides.task)
        config = resolve(raw)
        from makemore_pl.train import run  # imported here, because torch would make --help and --cfg slow

        return float(run(config)["val/loss"])
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, Exception) and not is_mistake(error):
            raise
        ended.append(error)
        return math.nan


if __name__ == "__main__":
    try:
        with one_sentence(), hydra_raises():
            sys.argv[1:] = read_hydra(sys.argv[1:])
            launch(main)
            if ended:
                raise ended[0]
    finally:
        end_at_once()
