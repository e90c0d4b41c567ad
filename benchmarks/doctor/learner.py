"""What every module of the benchmark has: its recipe, and the slips around the training step."""

from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.doctor.recipe import Recipe

FIRST_KIND = 1.41
"""Where a slip comes in two kinds, strengths below this are the first one: half of the draws between 1 and 2."""


class Learner(LightningModule):
    """A network that is trained by a recipe."""

    steps_a_batch = 1
    """Of optimizers, which Trainer's max_steps counts."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.recipe.has("eval left on") and self.global_step >= self.recipe.strength("eval left on") - 1:
            self.eval()

    def optimizer_zero_grad(self, *arguments: Any) -> None:
        if not self.recipe.has("never zeroed"):
            super().optimizer_zero_grad(*arguments)

    def harm(self, x: Tensor, y: Tensor) -> tuple[float, float | None]:
        """Loss and constant guess, for a task of one's own."""
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        return self.recipe.optimizer_of(self.parameters())


def softmax_in_network(recipe: Recipe) -> bool:
    """Whether the network itself ends in a softmax, so that it gives probabilities; else the loss has it once more."""
    return recipe.has("softmax twice") and recipe.strength("softmax twice") < FIRST_KIND


def loss(recipe: Recipe, predicted: Tensor, y: Tensor) -> Tensor:
    """What a recipe trains on, slips included; (N, V) and (N,) for classes, equal shapes otherwise."""
    reduction = "sum" if recipe.has("sum for mean") else "mean"
    if recipe.has("logits as likelihoods"):
        return functional.nll_loss(predicted, y)
    if recipe.task == "classes":
        if recipe.has("softmax twice") and not softmax_in_network(recipe):
            predicted = predicted.softmax(-1)
        return functional.cross_entropy(predicted, y, reduction=reduction)
    if recipe.task == "binary":
        predicted = predicted.sigmoid() if recipe.has("sigmoid twice") else predicted
        return functional.binary_cross_entropy_with_logits(predicted, y, reduction=reduction)
    return functional.mse_loss(predicted, y, reduction=reduction)


def ending(recipe: Recipe) -> list[nn.Module]:
    """Modules that slips put behind the last layer."""
    found: list[nn.Module] = []
    if recipe.has("relu at the output"):
        found.append(nn.ReLU())
    if recipe.has("sigmoid at the output"):
        found.append(nn.Sigmoid())
    if softmax_in_network(recipe):
        found.append(nn.Softmax(-1))
    return found


class Criterion(nn.Module):
    """The recipe's loss as a module."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return loss(self.recipe, output, target)
