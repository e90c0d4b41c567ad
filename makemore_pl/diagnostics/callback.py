"""What the diagnostics callbacks share: when to look, taps with an owner, and the way from tensors to loggers."""

import logging
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from makemore_pl.diagnostics import dashboard
from makemore_pl.diagnostics.taps import Tap, select

log = logging.getLogger(__name__)

Arrays = dict[str, "np.ndarray[Any, np.dtype[np.float32]]"]


def log_spaced(step: int) -> bool:
    """Whether step is one of 0, 1, 2, 5, 10, 20, 50, 100, ..."""
    return step == 0 or str(step).rstrip("0") in ("1", "2", "5")


class DiagnosticsCallback(Callback):
    """When to look, and the way from tensors to loggers.

    Steps are counted from 0, one for each batch that ended with an optimizer step: the axis of `self.log`. Where a data
    module hands out strides, all watched steps are looked at; elsewhere steps 0, 1, 2, 5, 10, 20, 50, ..., every
    `every_n_steps` and the last. With accumulated gradients it is the last batch of a step that is looked at.

    Subclasses put tensors into `self.values` by tag until the end of the step. The last diagnostics callback fetches
    those of all of them in one transfer from the device and logs the 0-d ones.
    """

    watched_steps_suffice = True
    """It reads what training does and changes nothing, so no step has to be watched for its sake."""

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self.step: int | None = None
        """The step being looked at, None between."""
        self.last = False
        """Whether it is the run's last."""
        self.values: dict[str, Tensor] = {}
        self._stepped = False
        self._advance, self._at = 0, 0
        self._last_step, self._strides = -1.0, False

    def due(self, step: int, last: bool, watched: bool) -> bool:
        """Whether to look at a step that is the run's last, or watched as the end of a stride."""
        return watched or last or log_spaced(step) or step % self.every_n_steps == 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._at = trainer.global_step
        self._last_step = trainer.estimated_stepping_batches - 1
        config = getattr(getattr(trainer, "datamodule", None), "trainer_config", None)
        self._strides = getattr(config, "watch_every", 1) > 1
        if trainer.global_step == 0:  # not resumed, whatever this object has seen in another run
            self.reset()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # with several optimizers, global_step counts the steps of each
        self._advance, self._at = trainer.global_step - self._at, trainer.global_step
        self.last = False
        if watched_step := getattr(pl_module, "watched_step", None):
            step = int(watched_step(batch))
        elif pl_module.automatic_optimization:
            step = trainer.global_step
        else:
            step = trainer.fit_loop.epoch_loop._batches_that_stepped
            self.last = trainer.global_step + self._advance >= trainer.max_steps > 0
        # EarlyStopping and max_time can't be foreseen
        self.last |= step == self._last_step
        self.values, self._stepped = {}, False
        self.step = step if self.due(step, self.last, self._strides) else None
        if self.step is not None:
            self.begin(trainer, pl_module, batch)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self.step is not None:
            self._stepped = True
            self.before_update(trainer, pl_module, optimizer)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.step is not None and self._stepped:
            self.end(trainer, pl_module, batch)
        elif self.step is not None:  # gradients are still being accumulated
            self.close()
            self.step = None
        everyone = [callback for callback in trainer.callbacks if isinstance(callback, DiagnosticsCallback)]  # type: ignore[attr-defined]
        steps = [callback.step for callback in everyone if callback.step is not None]
        if self is everyone[-1] and steps:
            numbers, arrays = fetch({tag: value for callback in everyone for tag, value in callback.values.items()})
            for callback in everyone:
                callback.measured(trainer, pl_module, steps[0], numbers, arrays)
            dashboard.log_numbers(trainer, numbers, steps[0])
            for callback in everyone:
                callback.step, callback.values = None, {}

    def reset(self) -> None:
        """Forget what was seen of earlier steps."""

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Before forward: open taps."""

    def before_update(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Gradients are whole, not scaled, not clipped; parameters have not moved."""

    def end(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """After the update: close taps, measure."""

    def measured(
        self, trainer: Trainer, pl_module: LightningModule, step: int, numbers: dict[str, float], arrays: Arrays
    ) -> None:
        """All values of this step, after the one transfer; numbers that are added here are logged too."""

    def close(self) -> None:
        """Remove whatever hooks there are."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Lightning calls no teardown of callbacks after an exception
        self.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.close()


def fetch(values: dict[str, Tensor]) -> tuple[dict[str, float], Arrays]:
    """0-d tensors as numbers, others as flat arrays, by tag; in one transfer from the device."""
    if not values:
        return {}, {}
    device = next(iter(values.values())).device
    scalars = {tag: value.to(device, torch.float32) for tag, value in values.items() if value.ndim == 0}
    others = {tag: value.to(device, torch.float32).flatten() for tag, value in values.items() if value.ndim > 0}
    whole = torch.cat([*([torch.stack(list(scalars.values()))] if scalars else []), *others.values()]).cpu().numpy()
    ends = np.cumsum([len(scalars), *map(len, others.values())])
    pieces = np.split(whole[len(scalars) :], ends[1:-1] - len(scalars)) if others else []
    return dict(zip(scalars, whole[: len(scalars)].tolist(), strict=True)), dict(zip(others, pieces, strict=True))


def prefix(names: list[str]) -> str:
    """The attribute that holds all of these parameters, with its dot, '' if there are several: tags leave it out."""
    roots = {name.partition(".")[0] + "." for name in names}
    return roots.pop() if len(roots) == 1 and all("." in name for name in names) else ""


def matrices(pl_module: LightningModule) -> dict[str, nn.Parameter]:
    """Parameters of two and more dimensions by the name that tags give them, as the lecture plots them.

    ValueError when none of them is trainable.
    """
    named = dict(pl_module.named_parameters())
    start = prefix(list(named))
    chosen = {name.removeprefix(start): parameter for name, parameter in named.items() if parameter.ndim >= 2}
    if not any(parameter.requires_grad for parameter in chosen.values()):
        raise ValueError(f"{type(pl_module).__name__} has no trainable parameter of two or more dimensions to watch.")
    return chosen


def gradient(parameter: nn.Parameter) -> Tensor | None:
    """The gradient, dense, None where there is none."""
    grad = parameter.grad
    return grad.to_dense() if grad is not None and grad.is_sparse else grad


def is_scaled(trainer: Trainer) -> bool:
    """Whether gradients carry the scale of 16-bit precision until the optimizer steps."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def steps_scaled(optimizer: Optimizer) -> bool:
    """Whether it takes the scale off by itself, so that nobody else sees the gradients without."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def parameters(optimizer: Optimizer) -> dict[nn.Parameter, None]:
    """Those that it steps, in order and quick to look up."""
    return {parameter: None for group in optimizer.param_groups for parameter in group["params"]}


def gradients(named: dict[str, nn.Parameter], optimizer: Optimizer) -> dict[str, Tensor]:
    """By name, dense and of the parameter's shape: of those that the optimizer steps and that have a gradient."""
    mine = parameters(optimizer)
    found = {name: gradient(parameter) for name, parameter in named.items() if parameter in mine}
    return {name: grad for name, grad in found.items() if grad is not None}


T = TypeVar("T", bound=Tap)


class TapCallback(DiagnosticsCallback, Generic[T]):
    """A callback with one tap on the modules that match `pattern` (a regex), or `types` where there is no pattern.

    Nothing matched is an error where a pattern was given or the callback has nothing else to show.
    """

    types: tuple[type[nn.Module], ...] = ()
    optional = False
    """Whether there is something to show without any tap."""

    def __init__(self, pattern: str | None = None, every_n_steps: int = 100) -> None:
        super().__init__(every_n_steps)
        self.pattern = pattern
        self._tap: T | None = None
        self._counted = False

    def make_tap(self, modules: dict[str, nn.Module]) -> T:
        raise NotImplementedError

    def modules(self, pl_module: LightningModule) -> dict[str, nn.Module]:
        """The matching modules by the name that tags give them: without prefix and without a last `.activation`."""
        # a pattern chooses by itself, so that it can also name modules of other types
        chosen = select(pl_module, () if self.pattern else self.types, self.pattern)
        start = prefix([name for name, _ in pl_module.named_parameters()])
        names = {name: name.removeprefix(start) for name in chosen}
        short = {name: names[name].removesuffix(".activation").removesuffix(".batchnorm") for name in chosen}
        if len(set(short.values())) < len(short):
            short = names
        return {short[name]: module for name, module in chosen.items()}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tap, self._counted = None, False
        if self.optional and not self.pattern and not any(isinstance(m, self.types) for m in pl_module.modules()):
            kinds = ", ".join(kind.__name__.lstrip("_") for kind in self.types)
            log.info("%s: %s has no %s to look at.", type(self).__name__, type(pl_module).__name__, kinds)
            return
        self._tap = self.make_tap(self.modules(pl_module))

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        if self._tap:
            self._tap.close()
            self._tap.open()

    def end(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        tap = self._tap
        if tap is None:
            return
        tap.close()
        if not self._counted:
            self._counted = True
            for name, calls in tap.calls.items():
                if calls != 1:
                    what = "nothing is measured" if calls == 0 else "its last call is measured"
                    log.warning("%s: %s ran %d times in a step; %s.", type(self).__name__, name, calls, what)
        self.measure(tap)
        tap.clear()

    def measure(self, tap: T) -> None:
        """Fill `values` from what the closed tap has recorded."""

    def close(self) -> None:
        if self._tap:
            self._tap.close()
            self._tap.clear()
