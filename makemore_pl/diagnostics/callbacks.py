"""Lightning callbacks: when to look, what to hand down to the statistics, what to call the result.

All of them look at watched steps only, hand 0-d tensors to one another, and the last one fetches them from the device
in one transfer. They attach to any LightningModule. None of them changes training by one bit.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from makemore_pl.diagnostics import statistics
from makemore_pl.diagnostics.taps import ActivationTap, BatchNormTap, ParameterSnapshot, Tap, select
from makemore_pl.unhooked import unhooked

log = logging.getLogger(__name__)

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.Tanh,
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.ELU,
    nn.SELU,
    nn.Sigmoid,
    nn.Hardtanh,
    nn.Softplus,
)


def log_spaced(step: int) -> bool:
    """Whether step is one of 0, 1, 2, 5, 10, 20, 50, 100, ..."""
    return step == 0 or str(step).rstrip("0") in ("1", "2", "5")


class DiagnosticsCallback(Callback):
    """When to look, and the way from tensors to loggers.

    Looks at every watched step of a module that takes strides (`watched_step(batch)`); at other modules, and at
    strides of one step, in steps 0, 1, 2, 5, 10, 20, 50, ..., every `every_n_steps` and the last.

    Subclasses put 0-d tensors into `self.values` by tag until the end of the step; what they put there is logged.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self.step: int | None = None
        """The step being looked at, None between."""
        self.values: dict[str, Tensor] = {}

    def due(self, step: int, trainer: Trainer, stride: int) -> bool:
        """Whether to look at this step, the last of a stride of `stride` steps."""
        return stride > 1 or log_spaced(step) or step % self.every_n_steps == 0 or step == trainer.max_steps - 1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        watched_step = getattr(pl_module, "watched_step", None)
        step = watched_step(batch) if watched_step else trainer.global_step
        self.values = {}
        self.step = step if self.due(step, trainer, step - trainer.global_step + 1) else None
        if self.step is not None:
            self.begin(trainer, pl_module, batch)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self.step is not None:
            self.before_update(trainer, pl_module, optimizer)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.step is not None:
            self.end(trainer, pl_module, batch)
        everyone = [callback for callback in trainer.callbacks if isinstance(callback, DiagnosticsCallback)]  # type: ignore[attr-defined]
        steps = [callback.step for callback in everyone if callback.step is not None]
        if self is everyone[-1] and steps:
            numbers = fetch({tag: value for callback in everyone for tag, value in callback.values.items()})
            for callback in everyone:
                callback.measured(trainer, pl_module, steps[0], numbers)
            if numbers:
                for logger in trainer.loggers:
                    logger.log_metrics(numbers, steps[0])

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Before forward: open taps."""

    def before_update(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Gradients are whole, not scaled, not clipped; parameters have not moved."""

    def end(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """After the update: close taps, measure."""

    def measured(self, trainer: Trainer, pl_module: LightningModule, step: int, numbers: dict[str, float]) -> None:
        """All tags of this step, after the one transfer."""

    def close(self) -> None:
        """Remove whatever hooks there are."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Lightning calls no teardown of callbacks after an exception
        self.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.close()


def fetch(values: dict[str, Tensor]) -> dict[str, float]:
    """Tags and 0-d tensors -> tags and numbers, in one transfer from the device."""
    if not values:
        return {}
    return dict(zip(values, torch.stack([value.float() for value in values.values()]).tolist(), strict=True))


def prefix(pl_module: LightningModule) -> str:
    """The attribute that holds all parameters, with its dot, '' if there are several: tags leave it out."""
    roots = {name.partition(".")[0] + "." for name, _ in pl_module.named_parameters() if "." in name}
    return roots.pop() if len(roots) == 1 and all("." in name for name, _ in pl_module.named_parameters()) else ""


def matrices(pl_module: LightningModule) -> dict[str, nn.Parameter]:
    """Trainable parameters of two and more dimensions by the name that tags give them, as the lecture plots them.

    ValueError when there are none.
    """
    start = prefix(pl_module)
    chosen = {
        name.removeprefix(start): parameter
        for name, parameter in pl_module.named_parameters()
        if parameter.ndim >= 2 and parameter.requires_grad
    }
    if not chosen:
        raise ValueError(f"{type(pl_module).__name__} has no trainable parameter of two or more dimensions to watch.")
    return chosen


class TapCallback(DiagnosticsCallback):
    """A callback with one tap on the modules that match; `nothing matched` is an error."""

    types: tuple[type[nn.Module], ...] = ACTIVATIONS

    def __init__(self, pattern: str | None = None, every_n_steps: int = 100) -> None:
        super().__init__(every_n_steps)
        self.pattern = pattern
        self._tap: Tap | None = None

    def modules(self, pl_module: LightningModule) -> dict[str, nn.Module]:
        """The matching modules by the name that tags give them: without prefix and without a last `.activation`."""
        # a pattern chooses by itself, so that it can also name modules of other types
        chosen = select(pl_module, () if self.pattern else self.types, self.pattern)
        start = prefix(pl_module)
        return {name.removeprefix(start).removesuffix(".activation"): module for name, module in chosen.items()}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tap = self.make_tap(self.modules(pl_module))

    def make_tap(self, modules: dict[str, nn.Module]) -> Tap:
        return ActivationTap(modules)

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        if self._tap:
            self._tap.open()

    def close(self) -> None:
        if self._tap:
            self._tap.close()
            self._tap.clear()


class ActivationStats(TapCallback):
    """What comes out of each activation function, and what goes in, on the watched minibatch.

    | tag | meaning | shape, unit |
    |---|---|---|
    | activation_mean/<layer> | mean of the activations | all elements, 1 |
    | activation_std/<layer> | their standard deviation | all elements, 1 |
    | preactivation_std/<layer> | standard deviation of the activation function's input | all elements, 1 |
    | stuck_units/<layer> | share of units at zero on 95 % of the examples | units, fraction |
    | saturation/<layer> | share of abs(tanh) > 0.97 | all elements, fraction |
    | saturation_excess/<layer> | saturation less what a Gaussian of this preactivation_std has | fraction |
    | dead_units/<layer> | share of units saturated on every example | units, fraction |
    | linear_share/<layer> | share of preactivations within (-0.8, 0.8) | all elements, fraction |
    | zero_share/<layer> | share of activations that are exactly zero | all elements, fraction |

    saturation, saturation_excess, dead_units and linear_share are measured for tanh, zero_share for ReLU.
    """

    def end(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        tap = self._tap
        assert isinstance(tap, ActivationTap)
        tap.close()
        for layer, a in tap.activation.items():
            z = tap.preactivation[layer]
            spread = statistics.std(z)
            self.values |= {
                f"activation_mean/{layer}": statistics.mean(a),
                f"activation_std/{layer}": statistics.std(a),
                f"preactivation_std/{layer}": spread,
                f"stuck_units/{layer}": statistics.stuck_units(a),
            }
            if isinstance(tap.modules[layer], nn.Tanh):
                self.values |= {
                    f"saturation/{layer}": statistics.saturation(a),
                    f"saturation_excess/{layer}": statistics.saturation_excess(a, spread),
                    f"dead_units/{layer}": statistics.dead_units(a),
                    f"linear_share/{layer}": statistics.linear_share(z),
                }
            elif isinstance(tap.modules[layer], nn.ReLU):
                self.values[f"zero_share/{layer}"] = statistics.zero_share(a)
        tap.clear()


class GradientStats(TapCallback):
    """The gradient of the loss, for each matrix of parameters and each activation.

    | tag | meaning | shape, unit |
    |---|---|---|
    | grad_std/<parameter> | standard deviation of the gradient, before clipping | all elements, nats per unit |
    | grad_data_ratio/<parameter> | standard deviation of gradient over that of parameter | 1 |
    | activation_grad_std/<layer> | standard deviation of the loss's gradient by the activations | nats per unit |
    | grad_norm/before_clipping | Euclidean norm of all gradients | nats per unit |
    | grad_norm/after_clipping | the same after clipping | nats per unit |
    | clipped/share | share of the last 100 watched steps in which clipping shortened the gradient | fraction |
    | not_finite/gradients | elements of gradients that are NaN or infinite | count |

    after_clipping and clipped are measured where gradients are clipped. activation_grad_std abstains under a 16-bit
    gradient scaler, whose scale it would show.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self._matrices = matrices(pl_module)
        self._clipping = trainer.gradient_clip_val is not None or is_overridden(
            "configure_gradient_clipping", pl_module
        )
        self._clipped: deque[Tensor] = deque(maxlen=100)
        self._scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if self._scaled:
            log.info("activation_grad_std abstains: gradients are scaled for 16-bit precision.")

    def before_update(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        mine = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, parameter in self._matrices.items():
            if id(parameter) in mine and parameter.grad is not None:
                self.values[f"grad_std/{name}"] = statistics.std(parameter.grad)
                self.values[f"grad_data_ratio/{name}"] = statistics.grad_data_ratio(parameter.grad, parameter.detach())
        gradients = self._gradients(pl_module)
        self.values["grad_norm/before_clipping"] = statistics.global_norm(gradients)
        self.values["not_finite/gradients"] = statistics.not_finite(gradients)

    @staticmethod
    def _gradients(pl_module: LightningModule) -> list[Tensor]:
        return [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]

    def end(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        tap = self._tap
        assert isinstance(tap, ActivationTap)
        tap.close()
        if not self._scaled:
            for layer, grad in tap.activation_grad.items():
                self.values[f"activation_grad_std/{layer}"] = statistics.std(grad)
        if self._clipping and (before := self.values.get("grad_norm/before_clipping")) is not None:
            after = statistics.global_norm(self._gradients(pl_module))
            self._clipped.append((after < before * (1 - 1e-6)).float())
            self.values["grad_norm/after_clipping"] = after
            self.values["clipped/share"] = torch.stack(list(self._clipped)).mean()
        tap.clear()


class UpdateStats(DiagnosticsCallback):
    """The step that was really taken, whatever the optimizer, weight decay and clipping, relative to the parameter.

    | tag | meaning | shape, unit |
    |---|---|---|
    | update_data_ratio/<parameter> | log10 of std(after - before) over std(after) | decades |
    | unmoved/share | share of these parameters that did not move: 1 for a skipped step | fraction |
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._matrices = matrices(pl_module)
        self._snapshots: list[ParameterSnapshot] = []

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        self._snapshots = []

    def before_update(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        ids = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if mine := {name: parameter for name, parameter in self._matrices.items() if id(parameter) in ids}:
            self._snapshots.append(ParameterSnapshot(mine))

    def end(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        unmoved = []
        for snapshot in self._snapshots:
            for name, step in snapshot.updates().items():
                ratio = statistics.update_data_ratio(step, snapshot.parameters[name].detach())
                self.values[f"update_data_ratio/{name}"] = ratio
                unmoved.append(torch.isneginf(ratio).float())
        if unmoved:
            self.values["unmoved/share"] = torch.stack(unmoved).mean()
        self._snapshots = []


class BatchNormStats(TapCallback):
    """BatchNorm's batch statistics against its running statistics.

    | tag | meaning | shape, unit |
    |---|---|---|
    | batchnorm_mean_lag/<layer> | distance of running from batch mean; 1: no more than the batch's own noise | 1 |
    | batchnorm_var_lag/<layer> | the same for the variance | 1 |
    | batchnorm_drift/<layer> | rms step of the running mean since the last watched step | running std |
    | batchnorm_weight_std/<layer> | spread of BatchNorm's weight | units, 1 |
    | batchnorm_bias_std/<layer> | spread of its bias | units, 1 |
    | batchnorm_gap/loss | loss with running less loss with batch statistics, on the same examples | nats |

    batchnorm_gap is measured at log-spaced steps and the last, on modules that have a `probe()`: it returns their
    network and a function that computes the loss of such a network on a fixed set of examples. Without BatchNorm in the
    network nothing is measured.
    """

    types = (_BatchNorm,)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before: dict[str, Tensor] = {}
        if not self.pattern and not any(isinstance(module, _BatchNorm) for module in pl_module.modules()):
            log.debug("BatchNormStats has nothing to measure: the network has no BatchNorm.")
            return
        super().on_fit_start(trainer, pl_module)

    def modules(self, pl_module: LightningModule) -> dict[str, nn.Module]:
        return {name.removesuffix(".batchnorm"): module for name, module in super().modules(pl_module).items()}

    def make_tap(self, modules: dict[str, nn.Module]) -> Tap:
        return BatchNormTap(modules)

    def end(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        if self._tap is None:
            return
        tap = self._tap
        assert isinstance(tap, BatchNormTap)
        tap.close()
        for layer, seen in tap.statistics.items():
            module = tap.modules[layer]
            assert isinstance(module, _BatchNorm)
            self.values |= {
                f"batchnorm_mean_lag/{layer}": statistics.mean_lag(
                    seen.batch_mean, seen.running_mean, seen.running_var, seen.n
                ),
                f"batchnorm_var_lag/{layer}": statistics.var_lag(seen.batch_var, seen.running_var, seen.n),
            }
            if layer in self._before:
                moved = (seen.running_mean - self._before[layer]) / seen.running_var.sqrt()
                self.values[f"batchnorm_drift/{layer}"] = statistics.rms(moved)
            self._before[layer] = seen.running_mean
            if module.affine:
                self.values[f"batchnorm_weight_std/{layer}"] = statistics.std(module.weight.detach())
                self.values[f"batchnorm_bias_std/{layer}"] = statistics.std(module.bias.detach())
        tap.clear()
        assert self.step is not None
        probe = getattr(pl_module, "probe", None)
        if probe and (log_spaced(self.step) or self.step == trainer.max_steps - 1):
            self.values["batchnorm_gap/loss"] = _loss_gap(*probe())


def _loss_gap(network: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Tensor:
    # in a copy, so that batch statistics leave no trace in the running ones, nor the probe in open taps
    network = unhooked(network).eval()
    running = loss(network)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    return running - loss(network)
