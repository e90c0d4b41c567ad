"""Other tools on the same modules, for scripts/benchmark.py --doctor --rivals with the extra `benchmark`.

Each is used as its own documentation says, with its defaults. What it says is mapped to our ids in MEANINGS, to
every id that it could be taken for, so that doubt is in its favour. Information does not count, as with ours.
"""

import contextlib
import importlib
import importlib.util
import io
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

LARGE = frozenset({"update_too_large", "diverged"})
EXPLODING = frozenset({"exploding_gradients", "update_too_large", "gradients_accumulate"})
VANISHING = frozenset({"vanishing_gradients", "vanishing_activations"})
STUCK = frozenset({"no_learning", "update_too_small"})
MEANINGS: dict[str, dict[str, frozenset[str]]] = {
    "gradsnitch": {
        "GS001": frozenset({"not_finite", "update_too_large"}),
        "GS002": EXPLODING,
        "GS003": EXPLODING | {"loss_spike"},
        "GS004": frozenset({"overfitting"}),
        "GS005": STUCK,
        "GS006": LARGE,
        "GS007": VANISHING,
        "GS008 low": frozenset({"update_too_small"}),
        "GS008 high": frozenset({"update_too_large"}),
        "GS009": LARGE,
        "GS010": frozenset(),
    },
    "torchmortem": {  # by how its titles begin
        "Vanishing gradients": VANISHING,
        "Exploding gradients": EXPLODING,
        "Gradient stalling": frozenset({"no_gradient", "frozen_parameters", "dead_units"}),
        "High gradient noise": frozenset(),
        "Training divergence": LARGE,
        "Loss plateau": STUCK,
        "Rank collapse": frozenset({"symmetric_units"}),
        "Update ratio too low": frozenset({"update_too_small", "frozen_parameters", "no_gradient"}),
        "Update ratio too high": frozenset({"update_too_large"}),
        "Weight norm explosion": frozenset({"update_too_large"}),
        "Stagnant weight norms": frozenset({"update_too_small", "frozen_parameters"}),
        "Inter-layer weight norm imbalance": frozenset({"confident_start", "exploding_activations"}),
        "Activation saturation": frozenset({"saturation"}),
        "Dead units": frozenset({"dead_units"}),
    },
    "torch-audit": {
        "TA100": frozenset({"not_finite"}),
        "TA102": EXPLODING,
        "TA103": frozenset({"dead_units", "no_gradient", "symmetric_units"}),
        "TA104": frozenset({"no_gradient"}),
        "TA105": frozenset({"dead_units", "vanishing_activations"}),
        "TA301": frozenset({"input_scale"}),
        "TA302": frozenset({"constant_input"}),
        "TA304": frozenset({"batchnorm_small_batch"}),
        "TA305": frozenset({"not_finite"}),
        "TA400": frozenset({"bias_before_batchnorm"}),
        "TA405": frozenset({"symmetric_units", "vanishing_activations"}),
        "TA500": frozenset({"no_gradient"}),
    },
    "torchdiag": {
        "EXPLODE": EXPLODING,
        "VANISH": VANISHING | {"dead_units"},
        "no_grad": frozenset({"no_gradient", "frozen_parameters"}),
        "dead": frozenset({"dead_units"}),
    },
    "training-doctor": {
        "lr_too_high": LARGE,
        "lr_too_low": frozenset({"update_too_small"}),
        "plateau": STUCK,
        "overfitting": frozenset({"overfitting"}),
        "gradient_instability": EXPLODING | {"loss_spike"},
    },
}


class Rival(Callback):
    """A tool beside a training. A tool that fails says no more, and the training goes on."""

    name: str
    package: str

    def __init__(self) -> None:
        self.tool: Any = importlib.import_module(self.package)
        self.said: set[str] = set()
        self.failure: str | None = None
        self.loss = float("nan")

    def attempt(self, what: Callable[..., Any], *arguments: Any) -> None:
        if self.failure is None:
            try:
                with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng():
                    what(*arguments)
            except Exception as error:
                self.failure = f"{type(error).__name__}: {error}".splitlines()[0]

    # Lightning's hooks

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.attempt(self.begin, trainer, pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.loss = float(loss)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.attempt(self.gradients, trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.attempt(self.step, trainer, pl_module, batch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.attempt(self.end, trainer, pl_module)

    # what a tool does

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None: ...

    def gradients(self, trainer: Trainer, pl_module: LightningModule) -> None: ...

    def step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None: ...

    def end(self, trainer: Trainer, pl_module: LightningModule) -> None: ...

    def words(self) -> list[str]:
        """What it said of what it diagnoses: of torch-audit, hints how to be faster are left out."""
        return sorted(self.said & set(MEANINGS[self.name]))


def _held_out(trainer: Trainer) -> float | None:
    return next((float(value) for tag, value in trainer.callback_metrics.items() if tag.startswith("val")), None)


class Gradsnitch(Rival):
    name, package = "gradsnitch", "gradsnitch"

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.monitor = self.tool.watch(pl_module, trainer.optimizers[0])
        self.last: float | None = None

    def gradients(self, trainer: Trainer, pl_module: LightningModule) -> None:
        held = _held_out(trainer)
        self.monitor.log(trainer.global_step, self.loss, val_loss=held if held != self.last else None)
        self.last = held

    def end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for each in self.tool.lint(self.monitor.df()):
            low = "small" in str(each).lower() or "too low" in str(each).lower()
            self.said.add(f"GS008 {'low' if low else 'high'}" if each.code == "GS008" else each.code)


class Torchmortem(Rival):
    name, package = "torchmortem", "torchmortem"

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.autopsy = self.tool.Autopsy(pl_module, optimizer=trainer.optimizers[0])
        self.autopsy.attach()

    def step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        self.autopsy.step(loss=self.loss)

    def end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.autopsy.detach()
        for each in self.autopsy.get_report().findings:
            if each.severity.name != "INFO":
                known = (title for title in MEANINGS[self.name] if each.title.startswith(title))
                self.said.add(next(known, each.title))


class TorchAudit(Rival):
    name, package = "torch-audit", "torch_audit.runtime"

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.auditor = self.tool.autopatch(pl_module, optimizer=trainer.optimizers[0], every_n_steps=100)

    def step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        if trainer.global_step <= pl_module.steps_a_batch:
            self.auditor.audit_data(batch[0], step=0)

    def end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.auditor.unpatch()
        self.said |= {each.rule_id for each in self.auditor.findings if each.severity.name != "INFO"}


class Torchdiag(Rival):
    name, package = "torchdiag", "torchdiag"

    def gradients(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step % 100 == 0:
            stats = self.tool.check_gradients(pl_module)
            self.said |= {each["status"] for each in stats.values() if each["status"] != "OK"}

    def step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        self.inputs = batch[0]

    def end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        report = self.tool.check_dead_neurons(pl_module, self.inputs)
        self.said |= {"dead" for each in report.values() if each["dead_pct"] > 20}


class TrainingDoctor(Rival):
    name, package = "training-doctor", "training_doctor"

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.doctor = self.tool.Doctor()

    def gradients(self, trainer: Trainer, pl_module: LightningModule) -> None:
        norms = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
        self.norm = float(torch.stack(norms).norm()) if norms else 0.0

    def step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        held = _held_out(trainer)
        known = {"loss": self.loss, "grad_norm": self.norm, "lr": trainer.optimizers[0].param_groups[0]["lr"]}
        self.doctor.log(trainer.global_step, **known, **({} if held is None else {"val_loss": held}))

    def end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.doctor.check()
        self.said |= {each.detector_name for each in self.doctor.diagnoses if each.severity.name != "INFO"}


RIVALS: tuple[type[Rival], ...] = (Gradsnitch, Torchmortem, TorchAudit, Torchdiag, TrainingDoctor)


def installed() -> list[type[Rival]]:
    return [each for each in RIVALS if importlib.util.find_spec(each.package.partition(".")[0])]
