"""Checkpoints: written whole, verified before use; plain tensors and numbers only, never code."""

import io
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

from makemore_pl.choices import OPTIMIZERS
from makemore_pl.config import Config, ModelConfig, OptimConfig
from makemore_pl.data import NamesDataModule
from makemore_pl.files import verify_archive, write_atomically
from makemore_pl.module import MakemoreModule
from makemore_pl.stride.finiteness import all_finite
from makemore_pl.words import fingerprint

log = logging.getLogger(__name__)
Schema = TypeVar("Schema", ModelConfig, OptimConfig)

CHECKPOINTING: dict[str, Any] = {"save_on_train_epoch_end": False, "enable_version_counter": False}
OPTIMIZER_STATE = ("name", *sorted({setting for settings in OPTIMIZERS.values() for setting in settings}))


SHAPE: dict[str, Any] = {
    "global_step": int,
    "state_dict": dict,
    "hyper_parameters": {"vocabulary": str, "block_size": int, "model": dict, "optim": dict},
    "makemore_pl": {"dropout_generator": torch.Tensor},
}
"""What reading needs of a checkpoint."""
RESUMABLE = SHAPE | {
    "NamesDataModule": {"generator": torch.Tensor, "words": str},
    "optimizer_states": list,
    "callbacks": dict,
    "loops": dict,
}
"""What resuming needs."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, on the CPU, loaded with weights_only, after a look at its checksums.

    Raises:
        ValueError: missing, truncated, damaged, or not a checkpoint of makemore_pl.
    """
    if not path.is_file():
        raise ValueError(f"There is no checkpoint {path}.")
    try:
        verify_archive(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what it stumbles over: a dozen types for a truncated file
        raise ValueError(f"{path} is not a checkpoint, or is truncated or damaged ({type(error).__name__}).") from error
    if not isinstance(checkpoint, dict) or "makemore_pl" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of makemore_pl.")
    _refuse_incomplete(path, checkpoint, SHAPE)
    return checkpoint


def _refuse_incomplete(path: Path, content: dict[str, Any], shape: dict[str, Any], prefix: str = "") -> None:
    for key, expected in shape.items():
        kind = dict if isinstance(expected, dict) else expected
        if not isinstance(content.get(key), kind):
            raise ValueError(f"{path} is not a whole checkpoint of makemore_pl: it lacks {prefix}{key}.")
        if isinstance(expected, dict):
            _refuse_incomplete(path, content[key], expected, f"{prefix}{key}.")


def usable_checkpoint(path: Path) -> Path:
    """The path; where that checkpoint is damaged, best.ckpt beside it, said in one line.

    Raises:
        ValueError: neither can be read.
    """
    try:
        read_checkpoint(path)
    except ValueError as error:
        best = path.parent / "best.ckpt"
        if best == path or not path.is_file() or not best.is_file():
            raise
        try:
            step = read_checkpoint(best)["global_step"]
        except ValueError:
            raise error from None
        log.warning("%s Going on from best.ckpt, step %d.", error, step)
        return best
    return path


class WholeFiles(TorchCheckpointIO):
    """Checkpoints written beside their target, synced and renamed, and read with a look at their checksums.

    Lightning writes them to TMPDIR and moves them, which is no longer one step where that is another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), buffer.getvalue())

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path))


class BestCheckpoint(ModelCheckpoint):
    """best.ckpt: after each validation, where it has the lowest loss so far."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "best", monitor="val/loss", **CHECKPOINTING)

    @property
    def state_key(self) -> str:
        """A key of its own, so that users can add a ModelCheckpoint with the same arguments."""
        return "makemore_pl.best"


class LastCheckpoint(ModelCheckpoint):
    """last.ckpt: after each validation, and where a signal stops the run between two strides."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "last", **CHECKPOINTING)

    @property
    def state_key(self) -> str:
        return "makemore_pl.last"

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save where the run stands, unless a parameter is not finite."""
        if isinstance(exception, SIGTERMException) and all_finite(list(pl_module.parameters())):
            assert self.dirpath is not None
            trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt")


def check_resumable(path: Path, config: Config, datamodule: NamesDataModule) -> int:
    """The step to resume at; refuses a checkpoint of another network, optimizer, seed or word list.

    Raises:
        ValueError: saying which differs.
    """
    checkpoint = read_checkpoint(path)
    _refuse_incomplete(path, checkpoint, RESUMABLE)
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
    try:
        generator.set_state(drawn["generator"])
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{path} can't be resumed from: its generator's state is damaged.") from error
    # a field that is newer than the checkpoint has its default there
    model, optim = _config(path, ModelConfig, hparams["model"]), _config(path, OptimConfig, hparams["optim"])
    theirs = {"data.block_size": hparams["block_size"], "seed": generator.initial_seed()}
    ours: dict[str, Any] = {"data.block_size": config.data.block_size, "seed": config.seed}
    # what lives in the optimizer's state: there the checkpoint's would win in silence
    theirs |= {f"optim.{key}": getattr(optim, key) for key in OPTIMIZER_STATE}
    ours |= {f"optim.{key}": getattr(config.optim, key) for key in OPTIMIZER_STATE}
    theirs |= {f"model.{key}": value for key, value in asdict(model).items()}
    ours |= {f"model.{key}": value for key, value in asdict(config.model).items()}
    if differing := [f"{key}={theirs[key]} (here {ours[key]})" for key in ours if theirs[key] != ours[key]]:
        raise ValueError(f"{path} is of another run: {', '.join(differing)}.")
    if checkpoint["global_step"] > config.trainer.max_steps:
        raise ValueError(
            f"{path} is at step {checkpoint['global_step']}, past trainer.max_steps={config.trainer.max_steps}."
        )
    _module(path, checkpoint)
    return int(checkpoint["global_step"])


def load_module(path: Path) -> MakemoreModule:
    """The module of a checkpoint, in eval mode.

    Raises:
        ValueError: as read_checkpoint.
    """
    return _module(path, read_checkpoint(path)).eval()


def _module(path: Path, checkpoint: dict[str, Any]) -> MakemoreModule:
    hparams = checkpoint["hyper_parameters"]
    model, optim = _config(path, ModelConfig, hparams["model"]), _config(path, OptimConfig, hparams["optim"])
    try:
        module = MakemoreModule(hparams["vocabulary"], hparams["block_size"], model, optim)
        module.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, TypeError, AttributeError, MemoryError) as error:
        raise ValueError(f"{path} has other parameters than its network.") from error
    return module


def _config(path: Path, schema: type[Schema], values: dict[str, Any]) -> Schema:
    try:
        return schema(**values)
    except TypeError as error:
        raise ValueError(f"{path} is of another version: {schema.__name__} is not {values}.") from error
