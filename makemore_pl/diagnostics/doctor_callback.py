"""The doctor as a callback: it watches any LightningModule and says what is wrong with its training."""

import json
import logging
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from makemore_pl.diagnostics import dashboard
from makemore_pl.diagnostics.activation_stats import is_activation
from makemore_pl.diagnostics.callback import DiagnosticsCallback, log_spaced
from makemore_pl.diagnostics.first_batches import INSPECTED
from makemore_pl.diagnostics.function_record import FunctionRecord
from makemore_pl.diagnostics.gathering import instruments
from makemore_pl.diagnostics.history import History
from makemore_pl.diagnostics.host import LightningModule, Trainer
from makemore_pl.diagnostics.offers import configuration_of, mean_loss_of
from makemore_pl.diagnostics.update import Update
from makemore_pl.diagnostics.validation_loss import ValidationLoss
from makemore_pl.diagnostics.watch import Arrays
from makemore_pl.doctor.diagnosis import diagnose
from makemore_pl.doctor.evidence import Evidence
from makemore_pl.doctor.finding import Abstention, Diagnosis, Finding, Prescription
from makemore_pl.doctor.plain_words import told, verdict
from makemore_pl.doctor.prescribing import prescribe
from makemore_pl.files import write_atomically

log = logging.getLogger(__name__)


class Doctor(DiagnosticsCallback):
    """Says what is wrong with a training, why, and what to change.

    It needs no other callback: it adds ActivationStats, GradientStats, UpdateStats and BatchNormStats if the trainer
    lacks them. It logs a critical finding as soon as that is certain. At the end of fit the verdict is printed, written
    to `findings.json` in the trainer's log directory and to TensorBoard, and kept in `findings`, `abstentions`,
    `checked` and `prescriptions`. docs/doctor.md explains each finding. What it has seen is part of each checkpoint, so
    a resumed run is judged as a whole. Resumed from a checkpoint without that, it abstains from what needs the start.

        from makemore_pl.diagnostics import Doctor
        trainer = Trainer(callbacks=[Doctor()], max_steps=1000)
        trainer.fit(module, loader)

    | tag | meaning | shape, unit |
    |---|---|---|
    | doctor | the verdict, in TensorBoard alone | lines of text |

    Args:
        announce: print the verdict.
    """

    def __init__(self, every_n_steps: int = 100, announce: bool = True) -> None:
        super().__init__(every_n_steps)
        self.announce = announce
        self.diagnosis = Diagnosis((), (), ())
        self.evidence: Evidence | None = None
        """The evidence that the verdict rests on."""
        self._key = f"{type(self).__name__} {id(self)}"
        """Lightning refuses equal keys before it is known which place this one has among the trainer's doctors."""
        self._instruments: list[DiagnosticsCallback] = []
        """Those that it has added."""
        self._begun = False
        """Whether training has begun in this fit."""
        self.reset()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Roots first."""
        return self.diagnosis.findings

    @property
    def abstentions(self) -> tuple[Abstention, ...]:
        return self.diagnosis.abstentions

    @property
    def checked(self) -> tuple[str, ...]:
        return self.diagnosis.checked

    @property
    def prescriptions(self) -> tuple[Prescription, ...]:
        return self.diagnosis.prescriptions

    @property
    def state_key(self) -> str:
        return self._key

    def reset(self) -> None:
        self._state: dict[str, Any] | None = None
        """What a checkpoint has kept of earlier steps, or of the last fit."""
        self._history = History()
        self._validation = ValidationLoss()
        self._last_critical: set[str] = set()
        self._said: set[str] = set()

    # Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        place = [each for each in trainer.callbacks if isinstance(each, Doctor)].index(self)  # type: ignore[attr-defined]
        self._key = f"Doctor {place}" if place else "Doctor"

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.watch
        self._begun = False
        there, self._instruments = self.watch.callbacks, []
        states = self._state.get("instruments", {}) if self._state and self.watch.taken else {}
        for each in instruments(pl_module):
            if not any(isinstance(callback, type(each)) for callback in there):
                each.every_n_steps = self.every_n_steps
                each.leave_out = lambda what, reason: None  # type: ignore[method-assign]  # nobody has asked for it
                each.watch = self.watch
                each.start(trainer, pl_module)
                if type(each).__name__ in states:
                    each.attempt("earlier steps", each.load_state_dict, states[type(each).__name__])
                self._instruments.append(each)
                there.insert(there.index(self), each) if there[0] is not self else there.append(each)
        self._directory = Path(trainer.log_dir or trainer.default_root_dir)
        self._scaler = getattr(trainer.precision_plugin, "scaler", None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._begin(trainer, pl_module)

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = self._state
        self.reset()
        self._begun = True
        self._history = History(unseen=(self.watch and self.watch.taken) or trainer.global_step)
        if self.watch and not trainer.barebones:
            self.attempt("the first batches", self._history.begin, pl_module)
            if state and self._history.first:
                self.attempt("the steps before", self._restore, state, trainer, pl_module)

    def _restore(self, state: dict[str, Any], trainer: Trainer, pl_module: LightningModule) -> None:
        """All or nothing."""
        history = History(self._history.unseen)
        history.begin(pl_module)
        history.restore(state["history"], trainer, pl_module)
        self._said, self._last_critical = map(set, state["said"])
        self._history = history

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._history.losses.begin()
        self._open = self._history.first is not None and not self._history.first.over
        if self._history.first and self._open:
            self.attempt("the first batches", self._history.first.open, trainer.optimizers)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        super().on_before_backward(trainer, pl_module, loss)
        # asked for in each batch: a scheduler of Lightning's changes it from epoch to epoch
        parts = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
        first = self.watch and self._history.losses.see(self.watch.step, loss, self._scaler, parts)
        watched = self._open or self.step is not None
        if first and (watched or not self._history.losses.has_enough):
            self.attempt("the loss", self._history.losses.read, loss, self._open)
        if first and watched:
            self.attempt("activation functions", self._read_functions, pl_module, loss)

    def _read_functions(self, pl_module: LightningModule, loss: Tensor) -> None:
        if self._history.functions is None and self._history.first and self._open:
            self._history.functions = FunctionRecord()
            modules = [each for each in pl_module.modules() if is_activation(each)]
            self._history.functions.find(loss, self._history.first.seen, modules)
        if self._history.functions and self.step is not None:
            self._history.functions.read(loss)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._history.first and self._open:
            self.attempt("the loss", self._history.losses.read_batch, batch)
            collated = getattr(trainer.train_dataloader, "batch_size", None)
            self.attempt("the first batches", self._history.first.close, batch, collated)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation.begin(trainer.callback_metrics)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._history.first and not trainer.sanity_checking:
            self.attempt("the inputs of validation", self._history.first.listen_to_validation)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._history.first:
            self._history.first.close_hooks()
        if not dataloader_idx:
            self._validation.see(outputs, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or self.watch is None:
            return
        graph = self._history.losses.graph
        loss = self._validation.end(trainer.callback_metrics, graph.kind if graph else None)
        if loss is not None:
            if "val/loss" not in self._history.series:
                self._history.validated_within = trainer.current_epoch
            self._history.series.setdefault("val/loss", {})[max(self.watch.taken - 1, 0)] = loss

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self.attempt("the verdict", self._conclude, trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (
            not self._begun
        ):  # no step was left, as after a kill at the very end, and Lightning calls no hook of training
            self._begin(trainer, pl_module)
            self.attempt("the verdict", self._conclude, trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._remember(trainer)
        if self._history.first:
            self._history.first.close_hooks()
        # whoever keeps the doctor for its findings keeps no module and no tensors; Lightning has bound the module's log
        self._history, self._instruments = History(), []
        vars(self).pop("log", None), vars(self).pop("log_dict", None)
        super().teardown(trainer, pl_module, stage)

    # what a checkpoint keeps

    def state_dict(self) -> dict[str, Any]:
        if self.watch:
            self._remember(self.watch.trainer)
        return self._state or {}

    def _remember(self, trainer: Trainer) -> None:
        if self._history.first:
            self._state = None
            self.attempt("its part of the checkpoint", self._keep, trainer)

    def _keep(self, trainer: Trainer) -> None:
        self._state = {
            "history": self._history.state(trainer),
            "instruments": {type(each).__name__: deepcopy(each.state_dict()) for each in self._instruments},
            "said": [sorted(self._said), sorted(self._last_critical)],
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._state = None  # of another run; `load_state_dict` follows if the checkpoint has one

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = dict(state_dict)

    # what it looks at

    def before_update(self, update: Update) -> None:
        assert self.watch
        self._history.updates += 1
        if self._history.first:
            self._history.first.before_update(update.optimizer)
        self._history.reached.update(p for p in self.watch.trainer.lightning_module.parameters() if p.grad is not None)
        lr = float(update.optimizer.param_groups[0]["lr"])
        self._history.note("lr", self.watch.step, lr)

    def end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (losses := self._history.losses.stacked()) is not None:
            self.values["doctor/losses"] = losses
        if self._history.functions and (functions := self._history.functions.stacked()) is not None:
            self.values["doctor/functions"] = functions
        if self._history.first:
            self._history.first.seen.look_at_modes()
            self._history.compare_later(self.watch.step if self.watch else 0)

    def measured(
        self, trainer: Trainer, pl_module: LightningModule, step: int, numbers: dict[str, float], arrays: Arrays
    ) -> None:
        for tag, number in numbers.items():
            self._history.series.setdefault(tag, {})[step] = number
        if "doctor/losses" in arrays:
            self._history.add_losses(arrays["doctor/losses"].tolist())
        if self._history.functions and "doctor/functions" in arrays:
            for tag, value in zip(self._history.functions.fetched, arrays["doctor/functions"].tolist(), strict=True):
                self._history.note(tag, step, value)
        if (mean := mean_loss_of(pl_module)) is not None:
            self._history.series.setdefault("train/loss_mean", {})[step] = mean
        if step >= INSPECTED - 1 and log_spaced(step):
            self._say_critical(trainer, pl_module, step)

    # what it says

    def _say_critical(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        """Once each: what the start shows at once, what comes later when it is still there at the next look."""
        critical = [each for each in self.look(trainer, pl_module).roots if each.severity == "critical"]
        for finding in critical:
            if finding.id not in self._said and (finding.step == 0 or finding.id in self._last_critical):
                self._said.add(finding.id)
                if trainer.is_global_zero:
                    log.warning("The doctor, at step %s: %s", f"{step:,}", told(finding))
        self._last_critical = {each.id for each in critical}

    def look(self, trainer: Trainer, pl_module: LightningModule) -> Diagnosis:
        """What is found so far, between two steps of fit."""
        return diagnose(self._history.evidence(trainer, pl_module, final=False))

    def broken_off(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, FloatingPointError) and self.watch:
            self._history.series.setdefault("train/loss", {})[self.watch.step] = None
        self._conclude(trainer, pl_module)

    def _conclude(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.watch is None or not (self.watch.taken or self._history.series):
            return
        evidence = self.evidence = self._history.evidence(trainer, pl_module, final=True)
        diagnosis = diagnose(evidence)
        self.diagnosis = replace(diagnosis, prescriptions=prescribe(diagnosis, evidence, configuration_of(pl_module)))
        lines = verdict(self.diagnosis, whole=False)
        if trainer.is_global_zero and not trainer.fast_dev_run and not trainer.barebones:  # type: ignore[attr-defined]
            self._directory.mkdir(parents=True, exist_ok=True)
            write_atomically(self._directory / "findings.json", json.dumps(self.diagnosis.as_json(), indent=2) + "\n")
            dashboard.log_text(trainer, "doctor", lines, max(self.watch.taken - 1, 0))
        if trainer.is_global_zero and self.announce:
            print("\n".join(["The doctor:", *lines]))
