"""Callbacks for this project's own runs: losses of baselines that need no network, and sampled names."""

import logging
import math
from typing import Any

import torch
from torch import Tensor

from makemore_pl.data import NamesDataModule
from makemore_pl.diagnostics import dashboard
from makemore_pl.diagnostics.callback import DiagnosticsCallback, log_spaced
from makemore_pl.diagnostics.host import LightningModule, Trainer
from makemore_pl.diagnostics.jsonl import JSONLinesLogger
from makemore_pl.diagnostics.watch import Arrays
from makemore_pl.module import MakemoreModule
from makemore_pl.sample import sample

log = logging.getLogger(__name__)

ENOUGH = 100
"""A baseline is compared with the mean of at least this many training losses. A single one can be lower by chance."""
MAX_LENGTH = 20
"""Sampled names are cut at this many characters. The longest name of the lecture's list has 15."""


def ngram_losses(x: Tensor, y: Tensor, classes: int) -> dict[str, float]:
    """Cross-entropy in nats of three predictors that only count: uniform, unigram and bigram frequencies of these data.

    Args:
        x: contexts (N, block_size); the last column is the character just before the target.
        y: targets (N,).
        classes: vocab_size.
    """
    pairs = torch.bincount(x[:, -1] * classes + y, minlength=classes * classes).reshape(classes, classes).double()
    unigram = pairs.sum(0)
    joint, before = pairs[pairs > 0] / len(y), pairs.sum(1)
    conditional = (pairs / before[:, None])[pairs > 0]
    frequencies = unigram[unigram > 0] / len(y)
    return {
        "uniform": math.log(classes),
        "unigram": -(frequencies * frequencies.log()).sum().item(),
        "bigram": -(joint * conditional.log()).sum().item(),
    }


class Baselines(DiagnosticsCallback):
    """Losses that need no network, and when the network passes them.

    | tag | meaning | shape, unit |
    |---|---|---|
    | baseline/uniform | ln V: all characters equally likely | nats |
    | baseline/unigram | each character by its frequency in the training split | nats |
    | baseline/bigram | each character by its frequency after the character before | nats |
    | baseline_passed/uniform | first watched step at which the mean of 100 or more losses is below it | step |
    | baseline_passed/unigram | the same for unigram | step |
    | baseline_passed/bigram | the same for bigram | step |

    It needs a data module with `vocabulary` and `examples["train"]` (contexts and targets), and abstains without.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        super().__init__(every_n_steps)
        self._losses: dict[str, float] = {}
        self._passed: list[str] = []
        self._first, self._seen, self._total = 0, 0, 0.0
        """`_total` is the sum of the training losses of the steps from `_first` up to, but without, `_seen`."""

    def due(self, step: int, last: bool, watched: bool) -> bool:
        return True  # the losses of all steps are summed, and reading one costs nothing

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._losses = {}
        self.attempt("all losses", self._count, trainer)

    def _count(self, trainer: Trainer) -> None:
        datamodule = getattr(trainer, "datamodule", None)
        if not isinstance(datamodule, NamesDataModule):
            log.info("Baselines abstains: the data module has no examples to count.")
            return
        x, y = datamodule.examples["train"]
        self._losses = ngram_losses(x.cpu(), y.cpu(), len(datamodule.vocabulary))

    def measured(
        self, trainer: Trainer, pl_module: LightningModule, step: int, numbers: dict[str, float], arrays: Arrays
    ) -> None:
        count = step + 1 - self._first
        steps = step + 1 - self._seen
        mean_loss = pl_module.mean_loss if isinstance(pl_module, MakemoreModule) else math.nan
        self._seen, self._total = step + 1, self._total + steps * mean_loss
        if log_spaced(step) or self.last:
            numbers.update({f"baseline/{name}": value for name, value in self._losses.items()})
        if count < ENOUGH:
            return
        loss, self._first, self._total = self._total / count, step + 1, 0.0
        for name, value in self._losses.items():
            if name not in self._passed and loss < value:
                self._passed.append(name)
                numbers[f"baseline_passed/{name}"] = float(step)

    def reset(self) -> None:
        self._passed, self._first, self._seen, self._total = [], 0, 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"passed": list(self._passed), "first": self._first, "seen": self._seen, "total": self._total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._passed, self._first = list(state_dict["passed"]), state_dict["first"]
        self._seen, self._total = state_dict["seen"], state_dict["total"]


class Samples(DiagnosticsCallback):
    """Names that the network generates, with BatchNorm's running statistics.

    | tag | meaning | shape, unit |
    |---|---|---|
    | samples | generated names, those in the word list marked with * | 10 lines of text |

    It samples at steps 0, 1,000, 10,000, 100,000, ... and at the last one, and does so for MakemoreModules only.
    """

    def __init__(self, count: int = 10) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}.")
        self.count = count

    def due(self, step: int, last: bool, watched: bool) -> bool:
        return last or step == 0 or (step >= 1000 and str(step).rstrip("0") == "1")

    def end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.step is not None
        self._sample(trainer, pl_module, self.step)

    def finish(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        self._sample(trainer, pl_module, step)

    def _sample(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        if not isinstance(pl_module, MakemoreModule):
            return
        try:
            names = sample(
                pl_module.model, pl_module.vocabulary, self.count, pl_module.block_size, max_length=MAX_LENGTH
            )
        except ValueError as error:  # the logits are not finite; the module's own error will name the layer
            log.warning("Samples, step %d: %s", step, error)
            return
        datamodule = getattr(trainer, "datamodule", None)
        known = set(datamodule.words) if isinstance(datamodule, NamesDataModule) else set()
        marked = [name.word + "*" * (name.word in known) for name in names]
        note = ["(* in the word list)"] * any(name.endswith("*") for name in marked)
        dashboard.log_text(trainer, "samples", marked + note, step)
        for logger in trainer.loggers:
            if isinstance(logger, JSONLinesLogger):
                logger.log_texts({"samples": marked}, step)
