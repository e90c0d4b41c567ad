"""One optimizer's update in a watched batch: its parameters and gradients, for all callbacks."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.optim import Optimizer

from makemore_pl.diagnostics.tag_names import matrices
from makemore_pl.diagnostics.taps import dense


class Update:
    """What an optimizer is about to do.

    Args:
        scaled: whether a 16-bit gradient scaler is at work.
    """

    def __init__(self, optimizer: Optimizer, module: nn.Module, scaled: bool) -> None:
        self.optimizer = optimizer
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        mine = set(self.parameters)
        self.matrices = {name: parameter for name, parameter in matrices(module).items() if parameter in mine}
        """Parameters of two and more dimensions, by tag name."""
        self.readable = not (scaled and getattr(optimizer, "_step_supports_amp_scaling", False))
        """Whether gradients are unscaled here. A fused optimizer unscales them only inside of its step."""

        self.clipped = False
        """Whether clipping is done, because the optimizer has got its gradients."""

    def matrix_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Tag name and gradient of each matrix that has one, before clipping, as ordinary tensors."""
        for name, parameter in self.matrices.items():
            if parameter.grad is not None:
                yield name, dense(parameter.grad)

    def gradients(self) -> list[Tensor]:
        """The current gradients of all parameters that have one. They can be sparse or distributed, see `dense`."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]
