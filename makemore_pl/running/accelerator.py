"""CPU or GPU: for training, and for what is done with a trained network."""

import logging

import torch
from torch import nn

from makemore_pl.config import Config, TrainerConfig

log = logging.getLogger(__name__)

GPU_PAYS = 50_000_000
"""Parameters times minibatch from which `auto` takes a GPU. Below it a step is a few small kernels, whose launches cost
more than their arithmetic; the lecture's networks are at 400,000 to 1,500,000. An estimate, not a measurement."""


def choose_accelerator(config: TrainerConfig, parameters: int, batch_size: int) -> str:
    """Cpu or gpu for training, with one line in the log.

    Raises:
        ValueError: gpu where there is none.
    """
    # not asked for where the CPU is wanted: asking initializes the driver
    there_is_one = config.accelerator != "cpu" and torch.cuda.is_available()
    if config.accelerator == "gpu" and not there_is_one:
        raise ValueError("trainer.accelerator=gpu: torch finds no GPU here; use trainer=cpu or trainer=auto.")
    if config.accelerator != "auto":
        chosen, why = config.accelerator, "as configured"
    elif not there_is_one:
        chosen, why = "cpu", "there is no GPU"
    elif parameters * batch_size < GPU_PAYS:
        chosen, why = "cpu", "a network this small is faster there; trainer=gpu takes the GPU"
    else:
        chosen, why = "gpu", "the network is large enough to gain from it"
    log.info("Training on the %s: %s.", chosen.upper(), why)
    if chosen == "gpu" and config.matmul_precision == "highest":
        log.info("Matrix products are in whole float32; trainer.matmul_precision=high is faster on tensor cores.")
    return chosen


def device_of(accelerator: str, config: Config, model: nn.Module) -> torch.device:
    """The device of --accelerator cpu, gpu or auto; auto is what trained the network, where this machine has it.

    Raises:
        ValueError: gpu where there is none.
    """
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("--accelerator gpu: torch finds no GPU here.")
    if accelerator == "auto":
        parameters = sum(parameter.numel() for parameter in model.parameters())
        pays = parameters * config.data.batch_size >= GPU_PAYS
        trained = "gpu" if config.trainer.accelerator == "auto" and pays else config.trainer.accelerator
        accelerator = "gpu" if trained == "gpu" and torch.cuda.is_available() else "cpu"
    return torch.device("cuda" if accelerator == "gpu" else "cpu")
