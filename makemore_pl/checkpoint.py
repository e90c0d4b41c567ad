"""Writes checkpoints atomically, verifies them before use, and loads tensors and numbers from them, never code."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from makemore_pl.config import Config, ModelConfig, OptimConfig
from makemore_pl.config.choices import OPTIMIZER_SETTINGS
from makemore_pl.data import NamesDataModule
from makemore_pl.files import whole_file
from makemore_pl.module import MakemoreModule
from makemore_pl.stored_files import read_archive
from makemore_pl.stride.optimizers import build_optimizer
from makemore_pl.words import fingerprint

log = logging.getLogger(__name__)

OPTIMIZER_STATE = ("name", *sorted({setting for settings in OPTIMIZER_SETTINGS.values() for setting in settings}))
READABLE: dict[str, Any] = {
    "makemore_pl": {"dropout_generator": torch.Tensor},
    "global_step": int,
    "state_dict": dict,
    "hyper_parameters": {"vocabulary": str, "block_size": int, "model": dict, "optim": dict},
}
"""The keys that every use of a checkpoint needs, and the types of their values."""
RESUMABLE: dict[str, Any] = {
    "NamesDataModule": {"generator": torch.Tensor, "words": str},
    "optimizer_states": list,
    "callbacks": dict,
    "loops": {
        "fit_loop": {
            "epoch_progress": dict,
            "epoch_loop.batch_progress": dict,
            "epoch_loop.automatic_optimization.optim_progress": dict,
        }
    },
}
"""The keys that resuming needs too."""


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its target, then renames it; compares its checksums when it reads it.

    Lightning writes to TMPDIR and moves the file from there. If TMPDIR is another file system, moving is a copy, and a
    kill during it would leave no whole checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(Path(path)) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch raises it while it closes what a full disk has not taken
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path))


class KeptCheckpoint(ModelCheckpoint):
    """Writes best.ckpt or last.ckpt after each validation, which can be in the middle of Lightning's single epoch."""

    def __init__(self, directory: Path, name: str, monitor: str | None = None) -> None:
        self.name = name
        super().__init__(directory, name, monitor, save_on_train_epoch_end=False, enable_version_counter=False)

    @property
    def state_key(self) -> str:
        """Unlike Lightning's key, it differs from that of a user's own ModelCheckpoint with the same monitor."""
        return f"makemore_pl.{self.name}"

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # checkpoints of earlier versions have the state of a ModelCheckpoint instead
        earlier = super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)
        if earlier in checkpoint["callbacks"]:
            checkpoint["callbacks"].setdefault(self.state_key, checkpoint["callbacks"][earlier])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the best score so far, which Lightning drops if the run directory was moved."""
        kept = Path(str(self.dirpath)) / f"{self.name}{self.FILE_EXTENSION}"
        if kept.is_file() and state_dict["best_k_models"]:
            (score,) = state_dict["best_k_models"].values()
            here = {"best_model_path": str(kept), "kth_best_model_path": str(kept), "best_k_models": {str(kept): score}}
            state_dict = {**state_dict, **here, "dirpath": self.dirpath}
        super().load_state_dict(state_dict)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Compare a checkpoint's checksums, then load it to the CPU with weights_only.

    Raises:
        ValueError: the file is missing, truncated, damaged, or not a checkpoint of makemore_pl.
    """
    if not path.is_file():
        raise ValueError(f"There is no checkpoint {path}.")
    checkpoint = read_archive(path)
    if not isinstance(checkpoint, dict) or "makemore_pl" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of makemore_pl.")
    _refuse_incomplete(path, checkpoint, READABLE)
    return checkpoint


def _refuse_incomplete(path: Path, content: dict[str, Any], needed: dict[str, Any], prefix: str = "") -> None:
    for key, kind in needed.items():
        if not isinstance(content.get(key), dict if isinstance(kind, dict) else kind):
            raise ValueError(f"{path} is not a whole checkpoint of makemore_pl: it lacks {prefix}{key}.")
        if isinstance(kind, dict):
            _refuse_incomplete(path, content[key], kind, f"{prefix}{key}.")


def usable_checkpoint(path: Path) -> Path:
    """The path to resume from: this one or, if it is damaged, best.ckpt beside it, with one warning.

    Raises:
        ValueError: there is no checkpoint, or neither can be used.
    """
    try:
        load_module(path)
    except ValueError as error:
        best = path.with_name("best.ckpt")
        if best == path or not path.is_file() or not best.is_file():
            raise
        try:
            step = read_checkpoint(best)["global_step"]
            load_module(best)
        except ValueError:
            raise error from None
        log.warning("%s Going on from best.ckpt beside it, at step %d.", error, step)
        return best
    return path


def check_resumable(path: Path, config: Config, datamodule: NamesDataModule) -> int:
    """The step to resume at. Refuses a checkpoint of another network, optimizer, seed or word list.

    Raises:
        ValueError: the message says what differs.
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
        generator.set_state(checkpoint["makemore_pl"]["dropout_generator"])
        generator.set_state(drawn["generator"])
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is not a whole checkpoint of makemore_pl: a generator has no state.") from error
    module = _module(path, checkpoint)
    try:
        (state,) = checkpoint["optimizer_states"]
        build_optimizer(module.parameters(), module.optim).load_state_dict(state)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path} can't be resumed from: it has no state of the optimizer.") from error
    theirs = {"data.block_size": module.block_size, "seed": generator.initial_seed()}
    ours: dict[str, Any] = {"data.block_size": config.data.block_size, "seed": config.seed}
    # these settings are part of the optimizer's state, so the checkpoint's values would silently replace the config's
    theirs |= {f"optim.{key}": getattr(module.optim, key) for key in OPTIMIZER_STATE}
    ours |= {f"optim.{key}": getattr(config.optim, key) for key in OPTIMIZER_STATE}
    theirs |= {f"model.{key}": value for key, value in module.hparams["model"].items()}
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
        ValueError: as in read_checkpoint, or the parameters do not fit the network that the checkpoint describes.
    """
    return _module(path, read_checkpoint(path)).eval()


def _module(path: Path, checkpoint: dict[str, Any]) -> MakemoreModule:
    hparams = checkpoint["hyper_parameters"]
    try:
        # a setting that is newer than the checkpoint takes its default
        model, optim = ModelConfig(**hparams["model"]), OptimConfig(**hparams["optim"])
        module = MakemoreModule(hparams["vocabulary"], hparams["block_size"], model, optim)
        module.load_state_dict(checkpoint["state_dict"])
    except (ValueError, TypeError, RuntimeError, AttributeError, MemoryError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} does not hold the network that it describes: {reason}") from error
    return module
