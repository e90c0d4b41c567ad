"""Modules of the reporting half on sequences: an LSTM and a language model."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.doctor.learner import Learner, ending, loss
from benchmarks.doctor.recipe import FUNCTIONS, Recipe
from benchmarks.doctor.reporting_data import Data


class SumLSTM(Learner):
    """A recurrent regression."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.lstm = nn.LSTM(2, recipe.width, batch_first=True)
        self.linear = nn.Linear(recipe.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.recipe.has("examples mixed"):
            b, t, c = x.shape
            hidden = nn.LSTM.forward(self.lstm, x.reshape(t, b, c).transpose(0, 1))[0][:, -1]
        else:
            hidden = self.lstm(x)[1][0][-1]
        if self.recipe.has("detached"):
            hidden = hidden.detach()
        y: Tensor = self.linear(hidden)
        for module in ending(self.recipe):
            y = module(y)
        return y

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        x, y = batch
        value = loss(self.recipe, self(x), y)
        self.log("train_loss", value, on_epoch=True)
        return value

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        self.log("val_loss", loss(self.recipe, self(batch[0]), batch[1]))


class Block(nn.Module):
    """Causal attention and a feed-forward network, each behind a LayerNorm."""

    def __init__(self, width: int, recipe: Recipe) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.recipe, self.f = recipe, FUNCTIONS[recipe.layer]

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(b, t, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
        if self.recipe.has("examples mixed"):  # the heads' softmax over the examples instead of the positions
            weights = (q @ k.transpose(-2, -1) / (c // 4) ** 0.5).tril().softmax(0)
            y = weights @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.dropout(self.proj(y.transpose(1, 2).reshape(b, t, c)), self.recipe.dropped, self.training)
        return x + F.dropout(self.down(self.f(self.up(self.ln2(x)))), self.recipe.dropped, self.training)


class LetterModel(Learner):
    """A language model that guesses every next letter."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width // 8 * 8
        self.tok, self.pos = nn.Embedding(9, width), nn.Embedding(10, width)
        self.blocks = nn.ModuleList(Block(width, recipe) for _ in range(recipe.depth))
        self.ln, self.lm_head = nn.LayerNorm(width), nn.Linear(width, 9, bias=False)
        nn.init.normal_(self.lm_head.weight, std=0.05 * recipe.strength("confident head"))

    def forward(self, idx: Tensor) -> Tensor:
        x = self.tok(idx) + self.pos(torch.arange(idx.size(1), device=idx.device))
        for block in self.blocks:
            x = block(x)
        if self.recipe.has("detached"):
            x = x.detach()
        logits: Tensor = self.lm_head(self.ln(x))
        for module in ending(self.recipe):
            logits = module(logits)
        return logits

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        idx, targets = batch
        logits = self(idx)
        return loss(self.recipe, logits.view(-1, logits.size(-1)), targets.view(-1))

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        idx, targets = batch
        self.log("val_loss", loss(self.recipe, self(idx).flatten(0, 1), targets.flatten()))
