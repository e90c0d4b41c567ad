"""The watch that all diagnostics callbacks of a trainer share: it chooses steps, opens the tap and logs numbers."""

import logging
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from makemore_pl.diagnostics import dashboard
from makemore_pl.diagnostics.host import LightningModule, Trainer
from makemore_pl.diagnostics.offers import offer, watch_every_of
from makemore_pl.diagnostics.taps import Tap, hidden_modules
from makemore_pl.diagnostics.update import Update

if TYPE_CHECKING:
    from makemore_pl.diagnostics.callback import DiagnosticsCallback

log = logging.getLogger(__name__)

Arrays = dict[str, "np.ndarray[Any, np.dtype[np.float32]]"]


PATIENCE = 100
"""How many steps of other optimizers are measured while the watch waits for one that may never step again."""


class Watch:
    """Drives the diagnostics callbacks of one trainer through one fit.

    Steps are counted from 0, one for each batch in which an optimizer stepped. In automatic optimization these are the
    steps of `self.log`. If the data module hands out strides, all watched steps are due; else each callback decides. A
    step that is due stays due until an optimizer steps. If several optimizers step in different batches, the watch
    waits for all that have stepped since the last step that was due. With accumulated gradients, the last batch of a
    step is measured.

    A callback that judges numbers instead of measuring them overrides `measured`, which gets all numbers of a step.

    Args:
        callbacks: all diagnostics callbacks of the trainer, in order.
        taken: steps that a resumed run has taken.
    """

    def __init__(self, trainer: Trainer, callbacks: "list[DiagnosticsCallback]", taken: int = 0) -> None:
        self.trainer = trainer
        self.callbacks = callbacks
        self.tap = Tap()
        self.taken = taken
        """Steps taken so far."""
        self.looking: list[DiagnosticsCallback] = []
        """The callbacks that measure this batch."""
        self.hidden: dict[nn.Module, str] = {}
        """Modules that take no hooks, and why."""
        self._shared: dict[object, Tensor] = {}
        self._updates: dict[Optimizer, Update] = {}
        """The updates of this batch."""
        self._due: list[DiagnosticsCallback] = []
        self._waiting: set[Optimizer] = set()
        """Optimizers whose step has not been measured yet."""
        self._stepped: set[Optimizer] = set()
        """Optimizers that have stepped in this batch."""
        self._stepped_since: set[Optimizer] = set()
        """Optimizers that have stepped since the last step that was due."""
        self._modules: list[tuple[DiagnosticsCallback, dict[str, nn.Module]]] = []
        self._asked, self._patience = -1, PATIENCE
        self._step, self._last = 0, False
        self._last_step = math.inf
        self._at, self._advance = 0, 0
        self._watched_step: Callable[..., Any] | None = None
        self._monitored: dict[str, Any] = {}
        self._strides = self._complete = self._counted = False
        self._handles: list[RemovableHandle] = []

    @property
    def step(self) -> int:
        """The step that this batch ends with, or will once it is whole."""
        return self._step

    @property
    def scaled(self) -> bool:
        """Whether a 16-bit gradient scaler scales the gradients until the optimizer steps."""
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None

    def once(self, key: object, compute: Callable[..., Tensor], *of: Any) -> Tensor:
        """The result of compute(*of), which is computed once a batch for all callbacks that ask for this key."""
        if key not in self._shared:
            self._shared[key] = compute(*of)
        return self._shared[key]

    def start(self, pl_module: LightningModule) -> None:
        self._monitored = self.trainer.callback_metrics  # asked for once, because each time it waits for the device
        self._at = self.trainer.global_step
        self._advance = len(self.trainer.optimizers)
        self._watched_step = offer(pl_module, "watched_step", None)
        try:
            self._last_step = self.trainer.estimated_stepping_batches - 1
        except Exception:  # Lightning can't estimate this for some schedules; then `finish` shows the last step
            self._last_step = math.inf
        self._strides = watch_every_of(pl_module) > 1
        self._complete = True  # nothing has been trained yet
        if not self.trainer.optimizers:
            log.warning("Diagnostics are left out: there is no optimizer whose steps they could follow.")
        for optimizer in self.trainer.optimizers:
            if not isinstance(optimizer, Optimizer):
                continue
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def begin(self, pl_module: LightningModule, batch: Any) -> None:
        """Called before the forward pass: find out which callbacks measure this batch, and open the tap for them."""
        trainer = self.trainer
        last, self._at = False, trainer.global_step
        if self._watched_step:
            step = int(self._watched_step(batch))
        elif pl_module.automatic_optimization:
            step = self._at
        else:
            step = self.taken
            # with several optimizers, global_step and max_steps count the steps of each
            last = self._at + self._advance >= trainer.max_steps > 0
            last |= trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        # EarlyStopping and max_time can't be foreseen
        last |= step == self._last_step
        self._step, self._last = step, last
        self._stepped.clear()
        if self.looking:
            self._forget()  # what a batch has left that did not end
        newly = [each for each in self.callbacks if each.due(step, last, self._strides)]
        if newly and step != self._asked:
            self._asked = step
            self._due = [each for each in self.callbacks if each in self._due or each in newly]
            self._patience = self._patience if self._waiting else PATIENCE
            self._waiting |= self._stepped_since or set(trainer.optimizers)
            self._stepped_since = set()
        if self._due and not trainer.barebones:
            self._open(pl_module)

    def _open(self, pl_module: LightningModule) -> None:
        self.looking, self.hidden = list(self._due), hidden_modules(pl_module)
        for callback in self.looking:
            callback.values, callback.step, callback.last = {}, self._step, self._last
            callback.attempt("this step", callback.begin, self.trainer, pl_module)
            callback.attempt("modules", self._choose, callback, pl_module)
        self.tap.open(pl_module, self._modules, self.hidden)

    def _choose(self, callback: "DiagnosticsCallback", pl_module: LightningModule) -> None:
        self._modules.append((callback, callback.modules(pl_module)))

    def before_update(self, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Called when gradients are complete. Only the first evaluation or step of a batch counts."""
        self._stepped.add(optimizer)
        if self.looking and optimizer not in self._updates:
            self._updates[optimizer] = update = Update(optimizer, pl_module, self.scaled)
            for callback in self.looking:
                callback.attempt("gradients", callback.before_update, update)

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A hook of the optimizer itself, after clipping. In automatic optimization a closure computes gradients."""
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if not self.looking or not callable(closure):
            self._ready(optimizer)
            return None

        def evaluated() -> Any:
            result = closure()
            self._ready(optimizer)
            return result

        if len(args) > 1:
            return (args[0], evaluated, *args[2:]), kwargs
        return args, kwargs | {"closure": evaluated}

    def _ready(self, optimizer: Optimizer) -> None:
        pl_module = self.trainer.lightning_module
        if not pl_module.automatic_optimization and optimizer not in self._stepped:
            self.before_update(pl_module, optimizer)  # the module called torch's step, not Lightning's
        update = self._updates.get(optimizer)
        if update and not update.clipped:
            update.clipped = True
            for callback in self.looking:
                callback.attempt("gradients after clipping", callback.after_clipping, update)

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        update = self._updates.get(optimizer)
        if update and update.clipped:
            for callback in self.looking:
                callback.attempt("the update", callback.after_update, update)

    def end(self, pl_module: LightningModule) -> None:
        """Called after the batch: measure, fetch, log."""
        if self._stepped:
            self.taken = self._step + 1
            self._advance = self.trainer.global_step - self._at or self._advance
            self._stepped_since |= self._stepped
            self._complete = False
        if not self.looking:
            return
        if self._stepped & self._waiting:
            self._measure(pl_module)
            self._waiting -= self._stepped
            self._complete = self._last
        elif self._stepped:
            self._patience -= 1
        # otherwise gradients are still being accumulated
        if not (self._waiting and self._patience):
            self._waiting, self._due = set(), []
        self._forget()

    def _measure(self, pl_module: LightningModule) -> None:
        self._tell_calls()
        for callback, modules in self._modules:
            if callback.reads_gradients:
                for layer, module in modules.items():
                    if (grad := self.tap.gradient(module)) is not None:
                        callback.attempt(f"gradient of {layer}", callback.see_gradient, layer, module, grad)
        for callback in self.looking:
            callback.attempt("this step", callback.end, self.trainer, pl_module)
        values = {tag: value for callback in self.looking for tag, value in callback.values.items()}
        numbers, arrays = fetch(values)
        for callback in self.callbacks:
            arguments = self.trainer, pl_module, self._step, numbers, arrays
            callback.attempt("what it shows", callback.measured, *arguments)
        dashboard.log_numbers(self.trainer, numbers, self._step)
        # EarlyStopping and ModelCheckpoint read these; self.log would be slower and log `epoch` at every step
        found = torch.tensor(list(numbers.values()))
        self._monitored.update(zip(numbers, found.unbind(), strict=True))

    def finish(self, pl_module: LightningModule) -> None:
        """Called at the end of a run. If its last step was not known in advance, callbacks show what they have kept."""
        if not self._complete and self.taken:
            self._forget()
            for callback in self.callbacks:
                callback.attempt("the end of the run", callback.finish, self.trainer, pl_module, self.taken - 1)
        self._complete = True

    def _tell_calls(self) -> None:
        """Warn once a run about modules that are not measured, or only in one of several calls."""
        if self._counted:
            return
        self._counted = True
        names = {module: layer for _, modules in self._modules for layer, module in modules.items()}
        passages = {names[module]: passage for module, passage in self.tap.passages.items()}
        idle = {layer: passage for layer, passage in passages.items() if not passage.calls}
        transformed = [layer for layer, passage in idle.items() if passage.transformed]
        asleep = [layer for layer, passage in idle.items() if passage.evaluations and not passage.transformed]
        unused = [layer for layer in idle if layer not in transformed and layer not in asleep]
        again = [f"{layer} ({passage.calls} times)" for layer, passage in passages.items() if passage.calls > 1]
        for layers, what in (
            (again, "ran more than once in a step: the first call is measured"),
            (asleep, "ran in eval mode only: nothing is measured"),
            (transformed, "ran inside a transform of torch.func only, where nothing can be measured"),
            (unused, "did not run in the first watched step: nothing is measured while that is so"),
        ):
            if layers:
                log.warning("Diagnostics: %s %s.", listed(layers), what)

    def _forget(self) -> None:
        self.tap.close()
        for callback in self.looking:
            callback.values, callback.step = {}, None
        self.looking, self._modules, self._updates, self._shared = [], [], {}, {}

    def close(self) -> None:
        """Remove all hooks."""
        self._forget()
        while self._handles:
            self._handles.pop().remove()


def fetch(values: dict[str, Tensor]) -> tuple[dict[str, float], Arrays]:
    """Move values from the device in one transfer: 0-d tensors become numbers, others flat arrays, by tag."""
    if not values:
        return {}, {}
    device = next(iter(values.values())).device
    scalars = {tag: value.to(device, torch.float32) for tag, value in values.items() if value.ndim == 0}
    others = {tag: value.to(device, torch.float32).flatten() for tag, value in values.items() if value.ndim > 0}
    whole = torch.cat([*([torch.stack(list(scalars.values()))] if scalars else []), *others.values()]).cpu().numpy()
    ends = np.cumsum([len(scalars), *map(len, others.values())])
    pieces = np.split(whole[len(scalars) :], ends[1:-1] - len(scalars)) if others else []
    return dict(zip(scalars, whole[: len(scalars)].tolist(), strict=True)), dict(zip(others, pieces, strict=True))


def listed(names: Iterable[str]) -> str:
    """The first four names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
