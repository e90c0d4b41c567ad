"""The character-level MLP: embedding, hidden layers, output layer. Pure torch."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from makemore_pl.activations import ACTIVATIONS
from makemore_pl.config import ModelConfig
from makemore_pl.config.memory import refuse_beyond_memory
from makemore_pl.dropout import Dropout
from makemore_pl.initialization import draw_embedding_, draw_linear_, weight_std


class MLP(nn.Module):
    """Logits of the next character from the last block_size characters.

    Each hidden layer is Linear, [BatchNorm1d,] activation, [BatchNorm1d,] [Dropout]; each of them a module of its own,
    so that hooks can tell them apart. A Linear whose output goes straight into BatchNorm has no bias.

    Args:
        vocab_size: characters, the end mark included.
        block_size: characters of context.
        config: sizes, activation, initialization and BatchNorm's place.
        generator: draws embedding, then weight and bias of each layer in turn.
    """

    def __init__(self, vocab_size: int, block_size: int, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        n_embd, n_hidden = config.n_embd, config.n_hidden
        hidden = n_hidden * (block_size * n_embd + (config.n_layers - 1) * n_hidden)
        refuse_beyond_memory(
            2 * 4 * (vocab_size * (n_embd + n_hidden) + hidden),
            "The network with its gradients",
            "use a smaller model.n_hidden, model.n_embd, model.n_layers or data.block_size",
        )
        self.embedding = nn.Embedding(vocab_size, config.n_embd)
        draw_embedding_(self.embedding, generator)
        self.layers = nn.Sequential()
        fan_in = block_size * config.n_embd
        for _ in range(config.n_layers):
            self.layers.append(_hidden_layer(fan_in, config, generator))
            fan_in = config.n_hidden
        self.output = _output_layer(fan_in, vocab_size, config, generator)

    def forward(self, x: Tensor) -> Tensor:
        """(B, block_size) character indices -> (B, vocab_size) logits."""
        logits: Tensor = self.output(self.layers(self.embedding(x).flatten(1)))
        return logits


def _batchnorm(features: int, config: ModelConfig) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(features, eps=config.bn_eps, momentum=config.bn_momentum)


def _hidden_layer(fan_in: int, config: ModelConfig, generator: torch.Generator) -> nn.Sequential:
    n_hidden = config.n_hidden
    linear = nn.Linear(fan_in, n_hidden, bias=not config.batchnorm_at("pre"))
    std = weight_std(config.init, config.gain, config.activation, fan_in, n_hidden)
    draw_linear_(linear, std, config.hidden_bias, generator)
    modules: OrderedDict[str, nn.Module] = OrderedDict(linear=linear)
    if config.batchnorm_at("pre"):
        modules["batchnorm"] = _batchnorm(n_hidden, config)
    modules["activation"] = ACTIVATIONS[config.activation].module()
    if config.batchnorm_at("post"):
        modules["batchnorm"] = _batchnorm(n_hidden, config)
    if config.dropout:
        modules["dropout"] = Dropout(config.dropout)
    return nn.Sequential(modules)


def _output_layer(fan_in: int, vocab_size: int, config: ModelConfig, generator: torch.Generator) -> nn.Sequential:
    linear = nn.Linear(fan_in, vocab_size, bias=not config.batchnorm_at("output"))
    if not config.batchnorm_at("output"):
        draw_linear_(linear, config.output_scale, config.output_bias, generator)
        return nn.Sequential(OrderedDict(linear=linear))
    std = weight_std(config.init, config.gain, config.activation, fan_in, vocab_size)
    draw_linear_(linear, std, 0.0, generator)
    batchnorm = _batchnorm(vocab_size, config)
    nn.init.constant_(batchnorm.weight, config.output_scale)
    return nn.Sequential(OrderedDict(linear=linear, batchnorm=batchnorm))
