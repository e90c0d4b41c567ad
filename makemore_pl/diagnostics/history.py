"""All that the doctor has seen of a training; it survives in checkpoints."""

from copy import deepcopy
from typing import Any

from torch import nn

from makemore_pl.diagnostics.first_batches import INSPECTED, FirstBatches
from makemore_pl.diagnostics.function_record import FunctionRecord
from makemore_pl.diagnostics.gathering import examples_of, of_first_batches, of_loss, of_optimizers
from makemore_pl.diagnostics.host import LightningModule, Trainer
from makemore_pl.diagnostics.loss_record import LossRecord
from makemore_pl.diagnostics.offers import offer
from makemore_pl.diagnostics.packed_series import pack, unpack
from makemore_pl.doctor.evidence import Evidence
from makemore_pl.doctor.facts import Facts

SETTLED = 5
"""From this step on, units that are still copies of each other will stay copies."""
PLAIN = ("updates", "validated_within", "compared", "unseen")


class History:
    """Numbers by step, what the first batches were like, the losses.

    Args:
        unseen: steps before the first one that is seen, of a resumed run.
    """

    def __init__(self, unseen: int = 0) -> None:
        self.unseen = unseen
        self.series: dict[str, dict[int, float | None]] = {}
        self.first: FirstBatches | None = None
        self.losses = LossRecord()
        self.functions: FunctionRecord | None = None
        """From the first batch on."""
        self.reached: set[nn.Parameter] = set()
        self.updates = 0
        """Of all optimizers, among those that were looked at."""
        self.validated_within = 0
        self.compared = False
        """Whether units were compared after some steps."""

    def begin(self, module: LightningModule) -> None:
        strided = offer(module, "watched_step", None) is not None
        self.first = FirstBatches(module, fresh=not self.unseen, strided=strided)

    def note(self, tag: str, step: int, number: float | None) -> None:
        """The first number of a step counts."""
        self.series.setdefault(tag, {}).setdefault(step, number)

    def add_losses(self, losses: list[float]) -> None:
        """Those that `losses` has given last."""
        for step, loss in zip(self.losses.fetched, losses, strict=True):
            self.note("train/loss", step, loss)

    def take_losses(self) -> None:
        """Those that are still on the device."""
        if (losses := self.losses.stacked()) is not None:
            self.add_losses(losses.flatten().tolist())

    def compare_later(self, step: int) -> None:
        if self.first and step >= SETTLED and not self.compared:
            self.compared = True
            self.first.compare_later()

    def evidence(self, trainer: Trainer, module: LightningModule, final: bool) -> Evidence:
        self.take_losses()
        facts = Facts(self.unseen, validated_within=self.validated_within)
        facts.examples = examples_of(trainer)
        facts.clip_value = float(trainer.gradient_clip_val or 0)
        facts.losses = max(len(trainer.optimizers), 1 if module.automatic_optimization else self.losses.most)
        of_optimizers(facts, module, trainer.optimizers, self.reached, self.series)
        if self.updates < INSPECTED * len(trainer.optimizers):
            facts.unreached = None
        if self.first:
            of_first_batches(facts, module, self.first, self.functions or FunctionRecord())
        if not self.compared and not facts.copies:
            facts.copies = None
            facts.unknown.setdefault("copies", f"fewer than {SETTLED + 1} steps were taken")
        of_loss(facts, self.losses, self.series)
        return Evidence(self.series, facts, final)

    def state(self, trainer: Trainer) -> dict[str, Any]:
        """What a checkpoint keeps: plain values and tensors on the CPU, no part of this object."""
        assert self.first
        self.take_losses()
        first = self.first.state(trainer.optimizers)
        functions = self.functions and self.functions.state()
        _count_places(first["seen"]["places"], functions["places"] if functions else {})
        parameters = trainer.lightning_module.named_parameters()
        return deepcopy(
            {
                "series": pack(self.series),
                "first": first,
                "functions": functions,
                "losses": self.losses.state(),
                "reached": [name for name, parameter in parameters if parameter in self.reached],
                **{name: getattr(self, name) for name in PLAIN},
            }
        )

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """After `begin`. Raises KeyError or other errors if the state is of another module."""
        assert self.first
        state, parameters = deepcopy(state), dict(module.named_parameters())
        self.first.restore(state["first"], trainer.optimizers)
        if state["functions"]:
            self.functions = FunctionRecord()
            self.functions.restore(state["functions"])
        self.losses.restore(state["losses"])
        self.series = unpack(state["series"])
        self.reached = {parameters[name] for name in state["reached"]}
        for name in PLAIN:
            setattr(self, name, state[name])


def _count_places(*places: dict[Any, int]) -> None:
    """Number them from 0: autograd's own numbers are another process's, and only their order counts."""
    ranks = {place: rank for rank, place in enumerate(sorted({place for each in places for place in each.values()}))}
    for each in places:
        each.update({key: ranks[place] for key, place in each.items()})
