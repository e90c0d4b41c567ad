"""Chooses CPU or GPU, for training and for a trained network."""

import logging
import os

import torch
from torch import nn

from makemore_pl.config import Config, TrainerConfig

log = logging.getLogger(__name__)

GPU_PAYS = 50_000_000
"""`auto` takes a GPU if parameters times batch size are at least this. With less, a step is a few small kernels, and
launching them takes longer than their arithmetic. The lecture's networks are at 400,000 to 1,500,000. The bound is an
estimate; it was not measured."""


def choose_accelerator(config: TrainerConfig, parameters: int, batch_size: int) -> str:
    """Returns "cpu" or "gpu" for training, and writes one line to the log.

    Raises:
        ValueError: a GPU is asked for, and there is none.
    """
    # torch is not asked if the CPU is wanted, because asking initializes the driver of the GPU
    there_is_one = config.accelerator != "cpu" and torch.cuda.is_available()
    if config.accelerator == "gpu" and not there_is_one:
        raise ValueError("trainer.accelerator=gpu: torch finds no GPU here; use trainer=cpu or trainer=auto.")
    if config.accelerator != "auto":
        chosen, why = config.accelerator, "as configured"
    elif not there_is_one:
        chosen, why = "cpu", "there is no GPU"
    elif parameters * batch_size < GPU_PAYS:
        chosen, why = "cpu", "it is faster for a network of this size; trainer=gpu uses the GPU"
    else:
        chosen, why = "gpu", "it is faster for a network of this size"
    log.info("Training on the %s: %s.", chosen.upper(), why)
    if chosen == "gpu":
        # cuBLAS reads it once, at the first matrix product of a process, in which a later run may be deterministic
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if chosen == "gpu" and config.matmul_precision == "highest":
        log.info("Matrix products use full float32; trainer.matmul_precision=high is faster on tensor cores.")
    return chosen


def device_of(accelerator: str, config: Config, model: nn.Module) -> torch.device:
    """The device for --accelerator cpu, gpu or auto. `auto` is the kind of device that trained the network if this
    machine has one, else the CPU.

    Raises:
        ValueError: a GPU is asked for, and there is none.
    """
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("--accelerator gpu: torch finds no GPU here.")
    if accelerator == "auto":
        parameters = sum(parameter.numel() for parameter in model.parameters())
        pays = parameters * config.data.batch_size >= GPU_PAYS
        trained = "gpu" if config.trainer.accelerator == "auto" and pays else config.trainer.accelerator
        accelerator = "gpu" if trained == "gpu" and torch.cuda.is_available() else "cpu"
    return torch.device("cuda" if accelerator == "gpu" else "cpu")
