"""Reading checkpoints: plain tensors and numbers only, never code."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from makemore_pl.choices import OPTIMIZERS
from makemore_pl.config import Config, ModelConfig, OptimConfig
from makemore_pl.data import NamesDataModule
from makemore_pl.module import MakemoreModule
from makemore_pl.words import fingerprint

OPTIMIZER_STATE = ("name", *sorted({setting for settings in OPTIMIZERS.values() for setting in settings}))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, on the CPU, loaded with weights_only.

    Raises:
        ValueError: missing, truncated, or not a checkpoint of makemore_pl.
    """
    if not path.is_file():
        raise ValueError(f"There is no checkpoint {path}.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what it stumbles over: a dozen types for a truncated file
        raise ValueError(f"{path} is not a checkpoint, or is truncated ({type(error).__name__}).") from error
    if not isinstance(checkpoint, dict) or "makemore_pl" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of makemore_pl.")
    return checkpoint


def check_resumable(path: Path, config: Config, datamodule: NamesDataModule) -> int:
    """The step to resume at; refuses a checkpoint of another network, optimizer, seed or word list.

    Raises:
        ValueError: saying which differs.
    """
    checkpoint = read_checkpoint(path)
    hparams = checkpoint["hyper_parameters"]
    vocabulary = datamodule.vocabulary
    if hparams["vocabulary"] != vocabulary.characters:
        raise ValueError(
            f"{path} has another vocabulary, {hparams['vocabulary']!r}, than these words, {vocabulary.characters!r}."
        )
    drawn = checkpoint[type(datamodule).__name__]
    if drawn["words"] != fingerprint(datamodule.words):
        raise ValueError(f"{path} was trained on other words than these.")
    generator = torch.Generator()
    generator.set_state(drawn["generator"])
    theirs = {"data.block_size": hparams["block_size"], "seed": generator.initial_seed()}
    ours: dict[str, Any] = {"data.block_size": config.data.block_size, "seed": config.seed}
    # what lives in the optimizer's state: there the checkpoint's would win in silence
    # a setting that is newer than the checkpoint had its default
    theirs |= {f"optim.{key}": getattr(OptimConfig(**hparams["optim"]), key) for key in OPTIMIZER_STATE}
    ours |= {f"optim.{key}": getattr(config.optim, key) for key in OPTIMIZER_STATE}
    theirs |= {f"model.{key}": value for key, value in hparams["model"].items()}
    ours |= {f"model.{key}": value for key, value in asdict(config.model).items()}
    if differing := [f"{key}={theirs[key]} (here {ours[key]})" for key in ours if theirs[key] != ours[key]]:
        raise ValueError(f"{path} is of another run: {', '.join(differing)}.")
    if checkpoint["global_step"] > config.trainer.max_steps:
        raise ValueError(
            f"{path} is at step {checkpoint['global_step']}, past trainer.max_steps={config.trainer.max_steps}."
        )
    return int(checkpoint["global_step"])


def load_module(path: Path) -> MakemoreModule:
    """The module of a checkpoint, in eval mode.

    Raises:
        ValueError: as read_checkpoint.
    """
    checkpoint = read_checkpoint(path)
    hparams = checkpoint["hyper_parameters"]
    module = MakemoreModule(
        hparams["vocabulary"], hparams["block_size"], ModelConfig(**hparams["model"]), hparams["optim"]
    )
    module.load_state_dict(checkpoint["state_dict"])
    return module.eval()
