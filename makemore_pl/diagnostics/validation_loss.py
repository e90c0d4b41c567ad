"""Finds the loss of a validation among what a module logs or returns."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from makemore_pl.doctor.minibatch import examples_in

ALIASES = ("val/loss", "val_loss", "valid_loss", "validation_loss", "valid/loss", "validation/loss")
VALIDATION = re.compile(r"(?<![a-z])(val|valid|validation|dev|eval)(?![a-z])")
ANY_LOSS = "loss|objective|cost|criterion"
ENTROPY, SQUARES = "ce|nll|xent|cross_?entropy", "mse|rmse|mean_squared_error"
LOSSES = {
    "cross_entropy": ENTROPY, "nll": ENTROPY, "bce": f"b?ce|{ENTROPY}|binary_cross_entropy",
    "likelihood": f"b?ce|{ENTROPY}|binary_cross_entropy", "mse": SQUARES, "l1": "l1|mae|mean_absolute_error",
}  # fmt: skip
"""Kind of the training loss -> names of the same on validation data."""


class ValidationLoss:
    """One validation after the other.

    It is logged as val/loss or the like; or under a name that says validation, or that was logged in validations only,
    and says which loss it is; or returned from validation_step, alone or as "loss" or "val_loss".
    """

    def __init__(self) -> None:
        self._before: set[str] = set()
        self._own: set[str] = set()
        """Names that were first logged in a validation."""
        self._returned: list[tuple[Tensor, int]] = []
        """Losses of batches, with the number of examples."""

    def begin(self, logged: Mapping[str, Any]) -> None:
        self._before, self._returned = set(logged), []

    def see(self, outputs: Any, batch: Any) -> None:
        """What validation_step has returned for a batch."""
        if isinstance(outputs, Mapping):
            outputs = next((outputs[name] for name in ("loss", *ALIASES) if name in outputs), None)
        if isinstance(outputs, Tensor) and outputs.numel() == 1 and outputs.is_floating_point():
            self._returned.append((outputs.detach().reshape(()), examples_in(batch) or 1))

    def end(self, logged: Mapping[str, Any], kind: str | None) -> float | None:
        """The loss; None where nobody says it.

        Args:
            kind: of the training loss.
        """
        self._own |= set(logged) - self._before
        tag = next((each for each in ALIASES if each in logged), None)
        if tag or (tag := self._named(logged, kind)):
            value = float(logged[tag])
            return value**2 if re.search("(?<![a-z])rmse(?![a-z])", tag.lower()) else value
        if not self._returned:
            return None
        losses, sizes = zip(*self._returned, strict=True)
        weights = torch.tensor(sizes, dtype=torch.float32, device=losses[0].device)
        return float((torch.stack(losses).float() * weights).sum() / weights.sum())

    def _named(self, logged: Mapping[str, Any], kind: str | None) -> str | None:
        names = [each for each in logged if each in self._own or VALIDATION.search(each.lower())]
        for words in (ANY_LOSS, LOSSES.get(kind or "")):
            for name in names if words else ():
                if re.search(rf"(?<![a-z])({words})(?![a-z])", name.lower()):
                    return name
        return next((each for each in logged if each.startswith("val") and "loss" in each), None)
