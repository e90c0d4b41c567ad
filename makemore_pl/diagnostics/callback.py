"""The base class of the diagnostics callbacks: when they measure, what, and how they leave out what they can't."""

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from makemore_pl.diagnostics import host
from makemore_pl.diagnostics.host import Callback, LightningModule, Trainer
from makemore_pl.diagnostics.tag_names import layer_names
from makemore_pl.diagnostics.taps import compiled_modules, select
from makemore_pl.diagnostics.update import Update
from makemore_pl.diagnostics.watch import Arrays, Watch, listed

log = logging.getLogger(__name__)


class DiagnosticsCallback(Callback):
    """Measures some steps of a training. It never changes or ends the training.

    All diagnostics callbacks of a trainer share one `Watch`, which the first of them drives. The watch asks each
    callback whether a step is `due`. If so, it calls in this order: `begin`; `see_input` and `see_output` for each
    module in `modules()`; `before_update` and `after_clipping` for each optimizer; `after_update` when the optimizer
    has stepped; `see_gradient`; `end`. Then it moves all values from the device at once and calls `measured` on all
    callbacks, due or not. `finish` is called if a run ends before its last step. An exception in one of these methods
    is logged, and the number that it would have measured is left out.
    """

    watched_steps_suffice = True
    """It does not need to see every step, so the steps between two watched ones can be compiled."""
    reads_gradients = False
    step: int | None = None
    """The step that is measured now; None between two such steps."""
    last = False
    """Whether that step is the run's last one."""
    watch: Watch | None = None
    """Shared by all diagnostics callbacks of a trainer, from the start of fit to its end."""
    _resumed = 0
    """Steps that a resumed run had taken, read from its checkpoint."""

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}.")
        host.join(DiagnosticsCallback, "callbacks")
        super().__init__()
        self.every_n_steps = every_n_steps
        self.values: dict[str, Tensor] = {}
        """Tag -> what was measured in this batch. 0-d tensors become numbers, others arrays."""
        self._told: set[str] = set()

    # methods for subclasses to override

    def due(self, step: int, last: bool, watched: bool) -> bool:
        """Whether to measure this step. `last`: it is the run's last; `watched`: it is the last one of a stride."""
        return watched or last or log_spaced(step) or step % self.every_n_steps == 0

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first step of a fit. The only place where a ValueError reaches the user."""

    def reset(self) -> None:
        """Forget all earlier steps, because a run starts at step 0."""

    def modules(self, pl_module: LightningModule) -> dict[str, nn.Module]:
        """The modules to look at, by their names in tags."""
        return {}

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before the forward pass."""

    def see_input(self, layer: str, module: nn.Module, x: Tensor) -> None:
        """Gets a module's first input, detached. The tensor is valid only until this method returns."""

    def see_output(self, layer: str, module: nn.Module, x: Tensor, unit_axis: int | None) -> None:
        """Gets a module's first output, and the dimension that holds the units (None if that is not known)."""

    def see_gradient(self, layer: str, module: nn.Module, grad: Tensor) -> None:
        """Gets the gradient of the loss by that output, summed over the backward passes of the batch."""

    def before_update(self, update: Update) -> None:
        """Called when gradients are complete, unscaled and not yet clipped. The parameters have not changed yet."""

    def after_clipping(self, update: Update) -> None:
        """Called when the optimizer is about to step: gradients are as it gets them."""

    def after_update(self, update: Update) -> None:
        """Called when the optimizer has stepped; not called if a gradient scaler skips the step."""

    def end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after the batch."""

    def measured(
        self, trainer: Trainer, pl_module: LightningModule, step: int, numbers: dict[str, float], arrays: Arrays
    ) -> None:
        """Gets the values of all callbacks at this step. Numbers that are added to `numbers` are logged too."""

    def finish(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        """Called if the run has ended early: `step` was its last, and was not measured as the last one."""

    def broken_off(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Called if an exception ends the run."""

    # methods for subclasses to call

    def put(self, tag: str, statistic: Callable[..., Tensor], *of: Any) -> None:
        """Measure one value under no_grad; leave it out if the statistic raises."""
        self.attempt(tag, self._put, tag, statistic, *of)

    def _put(self, tag: str, statistic: Callable[..., Tensor], *of: Any) -> None:
        with torch.no_grad():
            self.values[tag] = statistic(*of)

    def attempt(self, what: str, function: Callable[..., None], *arguments: Any) -> None:
        """Call the function. If it raises, log that once and go on: only what it was to do is lost."""
        try:
            function(*arguments)
        except Exception as error:
            self.leave_out(what, error)

    def leave_out(self, what: str, reason: object) -> None:
        """Warn that something is not measured, once for each reason."""
        why = f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)
        if why not in self._told:
            self._told.add(why)
            log.warning("%s leaves out %s: %s", type(self).__name__, what, why.splitlines()[0].rstrip(".") + ".")

    # Lightning's hooks. Only those of the first diagnostics callback drive the watch.

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks = [each for each in trainer.callbacks if isinstance(each, DiagnosticsCallback)]  # type: ignore[attr-defined]
        if self is callbacks[0]:
            watch = Watch(trainer, callbacks, self._resumed)
            for callback in callbacks:
                callback.watch = watch
        self._resumed, self._told = 0, set()
        self.start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:  # a new run, though this object may have seen another one before
            self.reset()
        if watch := self._driven():
            self.attempt("everything", watch.start, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if watch := self._driven():
            self.attempt("a step", watch.begin, pl_module, batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if watch := self._driven():
            watch.tap.backward = True

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if watch := self._driven():
            watch.tap.backward = False

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if watch := self._driven():
            self.attempt("a step", watch.before_update, pl_module, optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if watch := self._driven():
            self.attempt("a step", watch.end, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if watch := self._driven():
            watch.finish(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if watch := self._driven():
            if not isinstance(exception, Exception):
                watch.finish(pl_module)  # the user or the machine has interrupted the run
            for callback in watch.callbacks:
                callback.attempt("what broke off", callback.broken_off, trainer, pl_module, exception)
        # Lightning calls no teardown of callbacks after an exception
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if watch := self._driven():
            watch.close()
            for callback in watch.callbacks:
                callback.watch = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if (watch := self._driven()) and not pl_module.automatic_optimization:
            checkpoint["diagnostics"] = {"step": watch.taken}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._resumed = checkpoint.get("diagnostics", {}).get("step", checkpoint.get("global_step", 0))

    def _driven(self) -> Watch | None:
        return self.watch if self.watch and self.watch.callbacks[0] is self else None


def log_spaced(step: int) -> bool:
    """Whether step is one of 0, 1, 2, 5, 10, 20, 50, 100, ..."""
    return step == 0 or str(step).rstrip("0") in ("1", "2", "5")


class PatternCallback(DiagnosticsCallback):
    """A callback for modules: those whose names match `pattern` (a regex), or without a pattern those that it knows."""

    kind = ""
    """What it looks at without a pattern, for messages."""
    missing = "everything"
    """What is left out if there is no such module, for messages."""
    advice = ""
    """What to do then, as the end of the message."""

    def __init__(self, pattern: str | None = None, every_n_steps: int = 100) -> None:
        super().__init__(every_n_steps)
        self.pattern = pattern

    def knows(self, module: nn.Module) -> bool:
        """Whether to look at this module if there is no pattern."""
        raise NotImplementedError

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.pattern:
            self._select(pl_module)
        elif not self._select(pl_module):
            self.leave_out(self.missing, f"{type(pl_module).__name__} has no {self.kind}{self.advice}")

    def modules(self, pl_module: LightningModule) -> dict[str, nn.Module]:
        # selected anew at each watched step, because modules can be replaced or compiled during a run
        try:
            chosen = self._select(pl_module)
        except ValueError:  # the pattern matched at the start and no longer does
            return {}
        hidden = compiled_modules(pl_module)
        if within := [name for name, module in chosen.items() if module in hidden]:
            self.leave_out(
                listed(within),
                "torch.compile has taken it over, and compiled code ignores hooks (pytorch#117758). Train without "
                "torch.compile for the steps you want to look into; parameters are measured all the same",
            )
        names = layer_names(pl_module, chosen)
        return {names[name]: module for name, module in chosen.items() if module not in hidden}

    def _select(self, pl_module: LightningModule) -> dict[str, nn.Module]:
        return select(pl_module, (lambda _: True) if self.pattern else self.knows, self.pattern)

    @cached_property
    def state_key(self) -> str:  # cached, because Lightning asks for it at each call of a hook
        return self._generate_state_key(pattern=self.pattern)
