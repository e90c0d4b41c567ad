"""What the doctor looks at in the first batches of a training: calls, inputs, left-over gradients, equal weights."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from makemore_pl.diagnostics.tag_names import matrices
from makemore_pl.diagnostics.taps import hidden_modules, in_transform
from makemore_pl.doctor.copied_units import copies_of_units
from makemore_pl.doctor.facts import Scale
from makemore_pl.doctor.inspection import NORMALISATIONS, Inspection
from makemore_pl.doctor.minibatch import examples_in, examples_vary, scale_of, tensors_in
from makemore_pl.doctor.mixed_examples import mixed_examples
from makemore_pl.module_copy import Hook

INSPECTED = 3
"""Batches in the beginning of which every module's call is looked at, and steps before which gradients are."""
PATIENCE = 50
"""Batches in which these steps should come, where gradients are accumulated or optimizers take turns."""


PLAIN = ("batches", "unknown", "batch_size", "inputs_vary", "examples_mixed", "copies")
SCALES = ("inputs", "inputs_validated")


class FirstBatches:
    """Open before a batch and closed after it, until it is `over`. What fails costs one fact and no other.

    Args:
        module: of the training.
        fresh: whether it starts at step 0.
        strided: whether a batch is more than one minibatch.
    """

    def __init__(self, module: nn.Module, fresh: bool, strided: bool) -> None:
        self.module, self.strided = module, strided
        self.seen = Inspection(module, hidden_modules(module), in_transform)
        self.batches = 0
        self.unknown: dict[str, str] = {}
        """Name of a fact -> why it could not be found out."""
        self.batch_size: int | None = None
        self.inputs: Scale | None = None
        self.inputs_vary: bool | None = None
        self.inputs_validated: Scale | None = None
        self.examples_mixed: str | None = None
        self.copies: dict[str, float] | None = None
        """Hidden matrix -> share of its units that are copies, where nine tenths are at the start, or half later on."""
        self._at_start: dict[str, float] = {}
        self._left_over: dict[Optimizer, list[bool]] = {}
        """Whether gradients that arrived since the last step found others, of the smallest parameter."""
        self._kept: dict[Optimizer, list[bool]] = {}
        """Whether all of them did, step by step. Before the first one there are none."""
        self._handles: list[RemovableHandle] = []
        if fresh:
            self._find("copies", self._compare_at_start)

    def state(self, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
        """What a checkpoint keeps."""
        scales = {name: getattr(self, name) for name in SCALES}
        return {
            **{name: getattr(self, name) for name in PLAIN},
            **{name: scale and asdict(scale) for name, scale in scales.items()},
            "left_over": [self._left_over.get(each) for each in optimizers],
            "kept": [self._kept.get(each) for each in optimizers],
            "seen": self.seen.state(),
        }

    def restore(self, state: dict[str, Any], optimizers: Sequence[Optimizer]) -> None:
        for name in PLAIN:
            setattr(self, name, state[name])
        for name in SCALES:
            setattr(self, name, state[name] and Scale(**state[name]))
        for noted, of_each in ((self._left_over, state["left_over"]), (self._kept, state["kept"])):
            noted.update({o: list(each) for o, each in zip(optimizers, of_each, strict=True) if each is not None})
        self.seen.restore(state["seen"])

    @property
    def over(self) -> bool:
        stepped = bool(self._kept) and all(len(kept) >= INSPECTED for kept in self._kept.values())
        return self.batches >= (INSPECTED if stepped or "accumulates" in self.unknown else PATIENCE)

    def open(self, optimizers: Sequence[Optimizer]) -> None:
        """Before a batch."""
        self.batches += 1
        if self.batches <= INSPECTED:
            self.seen.open()
        for optimizer in optimizers:
            self._find("accumulates", self._listen, optimizer)

    def close(self, batch: Any, collated: int | None = None) -> None:
        """After it.

        Args:
            collated: examples of which the loader makes a minibatch, where it tells.
        """
        self.close_hooks()
        if self.batches == 1:
            self._find("copies", self._keep_hidden)
            self._find("inputs", self._measure_inputs, batch)
            self._find("examples_mixed", self._mix, batch, collated)
        self.seen.forget()

    def close_hooks(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        self.seen.close()

    def _find(self, name: str, look: Callable[..., None], *arguments: Any) -> None:
        try:
            look(*arguments)
        except Exception as error:
            self.unknown[name] = (str(error).splitlines() or [type(error).__name__])[0]

    def _measure_inputs(self, batch: Any) -> None:
        first = self.seen.outer[0] if self.seen.outer else None
        found = examples_in(batch)
        self.batch_size = examples_in(list(first[1])) if (self.strided or found is None) and first else found
        if (x := self.seen.first_input) is not None:
            self.inputs = scale_of(x)
            self.inputs_vary = examples_vary(x, self.batch_size or 0)

    def listen_to_validation(self) -> None:
        """Before the first batch of a validation; what the first layer gets in it is measured, once."""
        layer = self.seen.first_layer
        if layer is not None and self.inputs is not None and self.inputs_validated is None and not self._handles:
            self._handles.append(layer.register_forward_pre_hook(Hook(self._validated), with_kwargs=True))

    def _validated(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.inputs_validated is None and not in_transform() and (found := tensors_in([*args, *kwargs.values()])):
            self.inputs_validated = scale_of(found[0])

    def _mix(self, batch: Any, collated: int | None) -> None:
        size = self.batch_size or 0
        self.examples_mixed = mixed_examples(self.seen, batch, size, collated == size) or ""

    # units that are copies of each other

    def _compare_at_start(self) -> None:
        self._at_start = copies_of_units(matrices(self.module))

    def _keep_hidden(self) -> None:
        hidden = self._hidden()
        self.copies = {name: share for name, share in self._at_start.items() if share >= 0.9 and name in hidden}

    def compare_later(self) -> None:
        """After some steps, when units that still are copies are copies for good."""
        self._find("copies", self._keep_later)

    def _keep_later(self) -> None:
        shares = copies_of_units(self._hidden(), zeros=True)
        later = {name: share for name, share in shares.items() if share >= 0.5}
        self.copies = later | (self.copies or {})

    def _hidden(self) -> dict[str, nn.Parameter]:
        """Matrices with units: an embedding's rows are words, the last layer's classes, which targets tell apart."""
        no_units = (nn.Embedding, nn.EmbeddingBag, *NORMALISATIONS)
        aside = {p for m in self.module.modules() if isinstance(m, no_units) for p in m.parameters(recurse=False)}
        if self.seen.output is not None:
            aside |= set(self.seen.output.parameters(recurse=False))
        return {name: parameter for name, parameter in matrices(self.module).items() if parameter not in aside}

    # gradients of earlier steps

    def _listen(self, optimizer: Optimizer) -> None:
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        shaped = [parameter for parameter in trained if not nn.parameter.is_lazy(parameter)]
        if shaped:
            smallest = min(shaped, key=torch.numel)

            def arriving(grad: Tensor) -> None:
                kept = smallest.grad is not None and bool(smallest.grad.any())
                self._left_over.setdefault(optimizer, []).append(kept)

            self._handles.append(smallest.register_hook(arriving))

    def before_update(self, optimizer: Optimizer) -> None:
        """Gradients of a watched batch are whole."""
        if not self._handles:  # nobody listens any more
            return
        left = self._left_over.pop(optimizer, [])
        self._kept.setdefault(optimizer, []).append(bool(left) and all(left))

    def accumulates(self) -> bool | None:
        """Whether gradients are never zeroed; None where too few steps were seen."""
        later = [kept[1:] for kept in self._kept.values() if len(kept) >= INSPECTED]
        return any(all(kept) for kept in later) if later and "accumulates" not in self.unknown else None
