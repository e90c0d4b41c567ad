"""What comes out of activation functions, and what goes in."""

import logging

from torch import nn

from makemore_pl.diagnostics import statistics
from makemore_pl.diagnostics.callback import (
    TapCallback,
)
from makemore_pl.diagnostics.taps import ActivationTap

log = logging.getLogger(__name__)

ACTIVATIONS: tuple[type[nn.Module], ...] = (
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


class ActivationCallback(TapCallback[ActivationTap]):
    """A callback with a tap on activation functions."""

    types = ACTIVATIONS

    def make_tap(self, modules: dict[str, nn.Module]) -> ActivationTap:
        return ActivationTap(modules)


class ActivationStats(ActivationCallback):
    """What comes out of each activation function, and what goes in, on the watched minibatch.

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

    saturation, saturation_excess, dead_units and linear_share are measured for tanh, zero_share for ReLU. With
    accumulated gradients they are of the last of the accumulated minibatches.
    """

    def measure(self, tap: ActivationTap) -> None:
        for layer, a in tap.activation.items():
            z = tap.preactivation[layer]
            spread = statistics.std(z)
            self.values |= {
                f"activation_mean/{layer}": statistics.mean(a),
                f"activation_std/{layer}": statistics.std(a),
                f"preactivation_std/{layer}": spread,
                f"stuck_units/{layer}": statistics.stuck_units(a),
            }
            if isinstance(tap.modules[layer], nn.Tanh):
                saturation = statistics.saturation(a)
                self.values |= {
                    f"saturation/{layer}": saturation,
                    f"saturation_excess/{layer}": saturation - statistics.gaussian_saturation(spread),
                    f"dead_units/{layer}": statistics.dead_units(a),
                    f"linear_share/{layer}": statistics.linear_share(z),
                }
            elif isinstance(tap.modules[layer], nn.ReLU):
                self.values[f"zero_share/{layer}"] = statistics.zero_share(a)
