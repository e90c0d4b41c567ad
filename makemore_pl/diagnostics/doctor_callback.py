"""The doctor as a callback: it watches any LightningModule, and at the end says what is wrong with its training."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from makemore_pl.diagnostics import dashboard
from makemore_pl.diagnostics.callback import DiagnosticsCallback
from makemore_pl.diagnostics.gathering import instruments, of_inspection, of_loss, of_optimizers
from makemore_pl.diagnostics.host import LightningModule, Trainer
from makemore_pl.diagnostics.offers import configuration_of
from makemore_pl.diagnostics.tag_names import matrices
from makemore_pl.diagnostics.taps import compiled_modules
from makemore_pl.diagnostics.update import Update
from makemore_pl.diagnostics.watch import Arrays
from makemore_pl.doctor.diagnosis import diagnose
from makemore_pl.doctor.evidence import Evidence
from makemore_pl.doctor.facts import Facts
from makemore_pl.doctor.finding import Abstention, Diagnosis, Finding, Prescription
from makemore_pl.doctor.inspection import (
    NORMALISATIONS,
    Inspection,
    copies_of_units,
    examples_in,
    scale_of,
)
from makemore_pl.doctor.loss_graph import LossGraph, read_loss
from makemore_pl.doctor.mixed_examples import mixed_examples
from makemore_pl.doctor.plain_words import verdict
from makemore_pl.doctor.prescribing import prescribe
from makemore_pl.doctor.target_statistics import TargetStatistics
from makemore_pl.files import write_atomically

log = logging.getLogger(__name__)

INSPECTED = 3
"""The first batches, in which hooks inspect the calls of all modules."""
SETTLED = 5
"""From this step on, units that are still copies of each other will stay copies."""
ALIASES = ("val/loss", "val_loss", "valid_loss", "validation_loss", "valid/loss", "validation/loss")


class Doctor(DiagnosticsCallback):
    """Says what is wrong with a training, why, and what to change.

    It needs no other callback: it adds ActivationStats, GradientStats, UpdateStats and BatchNormStats if the trainer
    lacks them. At the end of fit the verdict is printed, written to `findings.json` in the trainer's log directory and
    to TensorBoard, and kept in `findings`, `abstentions`, `checked` and `prescriptions`. docs/doctor.md explains each
    finding.

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
        """What the rules have looked at."""
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

    def reset(self) -> None:
        self._series: dict[str, dict[int, float | None]] = {}
        self._facts = Facts()
        self._at_start: dict[str, float] = {}
        self._inspection: Inspection | None = None
        self._batches = 0
        self._graph: LossGraph | None = None
        self._backwards, self._most_backwards = 0, 0
        self._losses: list[tuple[int, Tensor]] = []
        self._fetched: list[int] = []
        self._targets = TargetStatistics()
        self._reached: set[nn.Parameter] = set()
        self._updates = 0
        self._left_over: dict[int, list[bool]] = {}
        self._never_zeroed: dict[int, int] = {}
        self._handles: list[RemovableHandle] = []
        self._said: set[str] = set()

    # Lightning's hooks

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.watch
        there = self.watch.callbacks
        for each in instruments(pl_module):
            if not any(isinstance(callback, type(each)) for callback in there):
                each.every_n_steps = self.every_n_steps
                each.leave_out = lambda what, reason: None  # type: ignore[method-assign]  # nobody has asked for it
                each.watch = self.watch
                each.start(trainer, pl_module)
                there.insert(there.index(self), each) if there[0] is not self else there.append(each)
        self._directory = Path(trainer.log_dir or trainer.default_root_dir)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._backwards = 0
        self.attempt("the first batches", self._open, trainer, pl_module, batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        super().on_before_backward(trainer, pl_module, loss)
        self._backwards += 1
        if self._backwards == 1 and (self._batches <= INSPECTED or self.step is not None):
            self.attempt("the loss", self._read, loss)
        if not pl_module.automatic_optimization and self._backwards == 1 and self.watch and loss.numel() == 1:
            self._losses.append((self.watch._step, loss.detach()))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.attempt("the first batches", self._close, trainer, pl_module, outputs, batch)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or self.watch is None:
            return
        metrics = trainer.callback_metrics
        tag = next((each for each in ALIASES if each in metrics), None)
        tag = tag or next((each for each in metrics if each.startswith("val") and "loss" in each), None)
        if tag:
            if "val/loss" not in self._series:
                self._facts.validated_within = trainer.current_epoch
            self._series.setdefault("val/loss", {})[max(self.watch.taken - 1, 0)] = float(metrics[tag])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self.attempt("the verdict", self._conclude, trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close_hooks()
        super().teardown(trainer, pl_module, stage)

    def _close_hooks(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        if self._inspection:
            self._inspection.close()

    # what it looks at

    def before_update(self, update: Update) -> None:
        self._updates += 1
        key = id(update.optimizer)
        if (left := self._left_over.get(key)) and key in self._never_zeroed:  # before the first step there are none
            self._never_zeroed[key] += 1 if all(left) else -INSPECTED
        self._never_zeroed.setdefault(key, 0)
        self._left_over[key] = []
        if self.watch:
            self._reached |= {p for p in self.watch.trainer.lightning_module.parameters() if p.grad is not None}
        step = self._now()
        self._series.setdefault("lr", {}).setdefault(step, float(update.optimizer.param_groups[0]["lr"]))

    def end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._losses:
            self._fetched = [step for step, _ in self._losses]
            values = [loss.float().reshape(()) for _, loss in self._losses]
            self.values["doctor/losses"] = torch.stack([each.to(values[0].device) for each in values]).reshape(-1, 1)
            self._losses = []
        if self._now() >= SETTLED and "copies" not in self._said:
            self._said.add("copies")
            self._facts.copies = self._copies(pl_module) | self._facts.copies
        if self._inspection:
            self._inspection.look_at_modes()

    def _copies(self, pl_module: LightningModule) -> dict[str, float]:
        """Copies among hidden units. Rows of embeddings and of the last layer are left out: data tell them apart."""
        seen = self._inspection
        no_units = (nn.Embedding, nn.EmbeddingBag, *NORMALISATIONS)
        aside = {p for m in pl_module.modules() if isinstance(m, no_units) for p in m.parameters(recurse=False)}
        if seen and (last := [m for m in seen.order if next(m.parameters(recurse=False), None) is not None]):
            aside |= set(last[-1].parameters(recurse=False))
        return copies_of_units({name: p for name, p in matrices(pl_module).items() if p not in aside})

    def measured(
        self, trainer: Trainer, pl_module: LightningModule, step: int, numbers: dict[str, float], arrays: Arrays
    ) -> None:
        for tag, number in numbers.items():
            self._series.setdefault(tag, {})[step] = number
        if "doctor/losses" in arrays:
            losses = self._series.setdefault("train/loss", {})
            for at, loss in zip(self._fetched, arrays["doctor/losses"].tolist(), strict=True):
                losses.setdefault(at, loss)
        if (mean := getattr(pl_module, "mean_loss", None)) is not None and hasattr(pl_module, "watched_step"):
            self._series.setdefault("train/loss_mean", {})[step] = float(mean)

    # the beginning

    def _now(self) -> int:
        return self.watch._step if self.watch else 0

    def _open(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        self._batches += 1
        if self._batches > INSPECTED or trainer.barebones:
            return
        if self._inspection is None:
            self._inspection = Inspection(pl_module, compiled_modules(pl_module))
            self._at_start = copies_of_units(matrices(pl_module)) if self.watch and not self.watch.taken else {}
        self._inspection.open()
        for optimizer in trainer.optimizers:
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
            if parameters:
                smallest = min(parameters, key=lambda each: each.numel())
                left = self._left_over.setdefault(id(optimizer), [])
                self._handles.append(smallest.register_hook(self._leftover(smallest, id(optimizer), left)))

    def _leftover(self, parameter: nn.Parameter, key: int, _: list[bool]) -> Any:
        def arriving(grad: Tensor) -> None:
            kept = parameter.grad is not None and bool(parameter.grad.any())
            self._left_over.setdefault(key, []).append(kept)

        return arriving

    def _read(self, loss: Tensor) -> None:
        graph = read_loss(loss)
        if self._batches <= 1:
            self._graph = graph
        if graph and self._graph and graph.kind == self._graph.kind:
            self._targets.see(graph)

    def _close(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any) -> None:
        self._close_hooks()
        if self._inspection and self._batches <= INSPECTED:
            if self._batches == 1:
                hidden = self._copies(pl_module)
                self._facts.copies = {n: c for n, c in self._at_start.items() if c >= 0.9 and n in hidden}
                self._facts.batch_size = size = examples_in(batch)
                self._facts.inputs = None if self._inspection.first_input is None else scale_of(
                    self._inspection.first_input
                )  # fmt: skip
                if self._graph and self._graph.targets is None:
                    self._targets.see_batch(self._graph, batch)
                try:
                    strided = hasattr(pl_module, "watched_step")
                    where = None if strided else mixed_examples(self._inspection, batch, size or 0)
                    self._facts.examples_mixed = where
                except Exception as error:
                    self._facts.unknown["examples_mixed"] = str(error).splitlines()[0] if str(error) else "it failed"
            self._inspection.forget()
        self._most_backwards = max(self._most_backwards, self._backwards)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if pl_module.automatic_optimization and isinstance(loss, Tensor) and loss.numel() == 1 and self.watch:
            # Lightning has divided the loss by accumulate_grad_batches
            self._losses.append((self.watch._step, loss.detach() * trainer.accumulate_grad_batches))

    # the end

    def broken_off(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, FloatingPointError):
            self._series.setdefault("train/loss", {})[self._now()] = None
        self._conclude(trainer, pl_module)

    def _unknown(self, trainer: Trainer) -> dict[str, str]:
        assert self.watch
        unknown = {}
        if self._updates < INSPECTED * len(trainer.optimizers):
            unknown = dict.fromkeys(("gradients_accumulate", "no_gradient"), "fewer than three steps were looked at")
        if self.watch.taken <= SETTLED:
            unknown["symmetric_units"] = f"fewer than {SETTLED + 1} steps were taken"
        return unknown

    def _conclude(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.watch is None or not (self.watch.taken or self._series):
            return
        evidence = self.evidence = self._gather(trainer, pl_module, final=True)
        diagnosis = diagnose(evidence)
        self.diagnosis = replace(diagnosis, prescriptions=prescribe(diagnosis, evidence, configuration_of(pl_module)))
        lines = verdict(self.diagnosis, whole=False)
        if trainer.is_global_zero and not trainer.fast_dev_run and not trainer.barebones:  # type: ignore[attr-defined]
            self._directory.mkdir(parents=True, exist_ok=True)
            write_atomically(self._directory / "findings.json", json.dumps(self.diagnosis.as_json(), indent=2) + "\n")
            dashboard.log_text(trainer, "doctor", lines, max(self.watch.taken - 1, 0))
        if trainer.is_global_zero and self.announce:
            print("\n".join(["The doctor:", *lines]))

    def look(self, trainer: Trainer, pl_module: LightningModule) -> Diagnosis:
        """What is found so far, between two steps of fit."""
        return diagnose(self._gather(trainer, pl_module, final=False))

    def _gather(self, trainer: Trainer, pl_module: LightningModule, final: bool) -> Evidence:
        assert self.watch
        for step, loss in self._losses:
            self._series.setdefault("train/loss", {}).setdefault(step, float(loss))
        self._losses = []
        facts = replace(self._facts, unknown=self._facts.unknown | self._unknown(trainer))
        facts.steps = self.watch.taken
        facts.losses = max(len(trainer.optimizers), 1 if pl_module.automatic_optimization else self._most_backwards)
        facts.clip_value = trainer.gradient_clip_val
        facts.accumulates = any(count >= 2 for count in self._never_zeroed.values())
        of_optimizers(facts, pl_module, trainer.optimizers, self._reached, self._series)
        if self._inspection:
            of_inspection(facts, pl_module, self._inspection)
        if self._graph:
            of_loss(facts, self._graph, self._targets, self._series)
        return Evidence(self._series, facts, final)
