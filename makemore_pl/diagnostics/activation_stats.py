"""Statistics of the outputs and inputs of activation functions."""

from functools import partial

import torch
from torch import Tensor, nn

from makemore_pl.diagnostics import statistics
from makemore_pl.diagnostics.callback import PatternCallback

ACTIVATION_MODULES: tuple[type[nn.Module], ...] = (
    nn.Tanh,
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.Mish,
    nn.Sigmoid,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Softsign,
    nn.Softplus,
)
NAME_PARTS = ("tanh", "elu", "silu", "swish", "mish", "sigmoid", "softplus", "softsign")
"""Parts of class names by which activation functions that are not torch's are known; "elu" is in ReLU and GELU too."""


def is_activation(module: nn.Module) -> bool:
    """Whether it is one of torch's, or has a name like one (NewGELUActivation) and no children or parameters."""
    if isinstance(module, ACTIVATION_MODULES):
        return True
    name = type(module).__name__.lower()
    bare = next(module.children(), None) is None and next(module.parameters(), None) is None
    return bare and any(part in name for part in NAME_PARTS) and "loss" not in name


def is_tanh(module: nn.Module) -> bool:
    return isinstance(module, nn.Tanh) or type(module).__name__ == "Tanh"


def is_relu(module: nn.Module) -> bool:
    return isinstance(module, nn.ReLU) or type(module).__name__ == "ReLU"


NO_AXIS = "no layer before it tells which dimension holds the units. Say so with unit_axis="


class ActivationCallback(PatternCallback):
    """A callback that looks at activation functions."""

    kind = "activation modules that it knows"
    advice = (
        ". Functions such as torch.relu are no modules: make them nn.ReLU(), or choose modules by name with pattern="
    )

    def knows(self, module: nn.Module) -> bool:
        return is_activation(module)


class ActivationStats(ActivationCallback):
    """Statistics of the outputs and inputs of each activation function, on the watched minibatch.

    | tag | meaning | shape, unit |
    |---|---|---|
    | activation_mean/<layer> | mean of the activations | all elements, 1 |
    | activation_std/<layer> | their standard deviation | all elements, 1 |
    | preactivation_std/<layer> | standard deviation of the activation function's input | all elements, 1 |
    | stuck_units/<layer> | share of units at zero on 95 % of the examples | units, fraction |
    | saturation/<layer> | share of abs(tanh) > 0.97 | all elements, fraction |
    | saturation_excess/<layer> | saturation less what a Gaussian of this preactivation_std has | fraction |
    | dead_units/<layer> | share of units saturated on every example | units, fraction |
    | linear_share/<layer> | share of preactivations within (-0.8, 0.8) | all elements, fraction |
    | zero_share/<layer> | share of activations that are exactly zero | all elements, fraction |

    saturation, saturation_excess, dead_units and linear_share are measured for tanh only, zero_share for ReLU only.
    With accumulated gradients, the last of the accumulated minibatches is measured.

        from makemore_pl.diagnostics import ActivationStats
        trainer = Trainer(callbacks=[ActivationStats()])
        trainer.fit(module, loader)  # saturation/..., zero_share/... appear in every logger

    Args:
        pattern: a regex of module names, where the activation functions that it knows are not what you want to see.
        unit_axis: the dimension that holds the units, where the layer before does not tell: 1 for channels, -1 for the
            last.
    """

    def __init__(self, pattern: str | None = None, every_n_steps: int = 100, unit_axis: int | None = None) -> None:
        super().__init__(pattern, every_n_steps)
        self.unit_axis = unit_axis
        self._shapes: dict[str, torch.Size] = {}
        """Layer -> shape of its input in this batch."""

    def begin(self, *_: object) -> None:
        self._shapes = {}

    def see_input(self, layer: str, module: nn.Module, x: Tensor) -> None:
        self._shapes[layer] = x.shape
        self.put(f"preactivation_std/{layer}", statistics.std, x)
        if is_tanh(module):
            self.put(f"linear_share/{layer}", statistics.linear_share, x)

    def see_output(self, layer: str, module: nn.Module, x: Tensor, unit_axis: int | None) -> None:
        if not self.pattern and x.shape != self._shapes.get(layer):
            self.values.pop(f"preactivation_std/{layer}", None)
            self.leave_out(layer, "its output has another shape than its input, so it is no activation function")
            return
        axis = unit_axis if self.unit_axis is None else self.unit_axis
        self.put(f"activation_mean/{layer}", statistics.mean, x)
        self.put(f"activation_std/{layer}", statistics.std, x)
        if axis is None:
            self.leave_out(f"stuck and dead units of {layer}", NO_AXIS)
        else:
            self.put(f"stuck_units/{layer}", partial(statistics.stuck_units, axis=axis), x)
        if is_tanh(module):
            self.put(f"saturation/{layer}", statistics.saturation, x)
            if (spread := self.values.get(f"preactivation_std/{layer}")) is not None:
                self.put(f"saturation_excess/{layer}", statistics.saturation_excess, x, spread)
            if axis is not None:
                self.put(f"dead_units/{layer}", partial(statistics.dead_units, axis=axis), x)
        elif is_relu(module):
            self.put(f"zero_share/{layer}", statistics.zero_share, x)
