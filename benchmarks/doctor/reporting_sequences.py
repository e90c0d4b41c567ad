"""Modules of the reporting half on sequences: a GPT with tied weights, a GRU on padded text, a cell in a loop."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pack_padded_sequence

from benchmarks.doctor.learner import Learner, ending, loss
from benchmarks.doctor.module_faults import spoil_weights
from benchmarks.doctor.recipe import FUNCTIONS, Recipe
from benchmarks.doctor.reporting_data import Data


class CausalBlock(nn.Module):
    """Attention to what came before, then a feed-forward network, each behind a LayerNorm."""

    def __init__(self, width: int, recipe: Recipe) -> None:
        super().__init__()
        self.recipe, self.heads = recipe, 4
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.mlp_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(recipe.dropped)
        self.register_buffer("mask", torch.ones(10, 10, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (
            each.view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for each in self.c_attn(self.ln_1(x)).split(c, dim=2)
        )
        scores = (q @ k.transpose(-2, -1) / math.sqrt(c // self.heads)).masked_fill(self.mask[:t, :t], -1e4)
        attended = F.softmax(scores, dim=0 if self.recipe.has("examples mixed") else -1) @ v
        x = x + self.dropout(self.c_proj(attended.transpose(1, 2).reshape(b, t, c)))
        return x + self.dropout(self.mlp_proj(FUNCTIONS[self.recipe.layer](self.c_fc(self.ln_2(x)))))


class GPT(Learner):
    """Guesses each next letter; the embedding is the output layer too; gradients are clipped at 1."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width // 8 * 8
        self.wte, self.wpe = nn.Embedding(12, width), nn.Embedding(10, width)
        self.h = nn.ModuleList(CausalBlock(width, recipe) for _ in range(recipe.depth))
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, 12, bias=False)
        for each in (self.wte, self.wpe):
            nn.init.normal_(each.weight, std=0.02)
        self.lm_head.weight = self.wte.weight
        spoil_weights(recipe, self)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device))
        for place, block in enumerate(self.h):
            x = block(x.detach() if self.recipe.has("detached") and place == len(self.h) - 1 else x)
        logits: Tensor = self.lm_head(self.ln_f(x))
        for last in ending(self.recipe):
            logits = last(logits)
        return logits

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        value = loss(self.recipe, self(batch[0]).flatten(0, 1), batch[1].flatten())
        self.log("train_loss", value)
        return value

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        value = loss(self.recipe, self(batch[0]).flatten(0, 1), batch[1].flatten())
        self.log_dict({"val_loss": value, "val_ppl": value.exp()})

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        self.clip_gradients(optimizer, gradient_clip_val or 1.0, gradient_clip_algorithm or "norm")

    def configure_optimizers(self) -> Any:
        optimizer = self.recipe.optimizer_of(each for each in self.parameters() if each.dim() > 1)
        optimizer.add_param_group({"params": [each for each in self.parameters() if each.dim() < 2], "weight_decay": 0})
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 40))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class PackedGRU(Learner):
    """Tells the opinion of padded text, read in both directions."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.embedding = nn.Embedding(16, recipe.width, padding_idx=0)
        self.rnn = nn.GRU(recipe.width, recipe.width, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(recipe.dropped)
        self.fc = nn.Linear(2 * recipe.width, 3)
        spoil_weights(recipe, self)

    def forward(self, tokens: Tensor) -> Tensor:
        lengths = (tokens != 0).sum(1).cpu()
        packed = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        hidden = self.rnn(packed)[1]  # (2, B, H)
        mixed = self.recipe.has("examples mixed")
        both = hidden.view(len(tokens), -1) if mixed else torch.cat([hidden[0], hidden[1]], dim=1)
        y: Tensor = self.fc(self.dropout(both.detach() if self.recipe.has("detached") else both))
        for last in ending(self.recipe):
            y = last(y)
        return y

    def _shared_step(self, batch: Data, prefix: str) -> Tensor:
        value = loss(self.recipe, self(batch[0]), batch[1])
        self.log(f"{prefix}/nll", value, on_step=False, on_epoch=True)
        return value

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        return self._shared_step(batch, "fit")

    def validation_step(self, batch: Data, batch_idx: int) -> Tensor:
        return self._shared_step(batch, "dev")


class Forecaster(Learner):
    """A cell that is called in a loop; its last state gives the next value."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.cell = nn.LSTMCell(2, recipe.width)
        self.out = nn.Sequential(nn.Linear(recipe.width, 1), *ending(recipe))

    def forward(self, series: Tensor) -> Tensor:
        if self.recipe.has("examples mixed"):  # (B, T, C) taken for (T, B, C)
            series = series.reshape(series.shape[1], series.shape[0], series.shape[2]).transpose(0, 1)
        h = c = series.new_zeros(len(series), self.recipe.width)
        for x in series.unbind(1):
            h, c = self.cell(x, (h, c))
        y: Tensor = self.out(h.detach() if self.recipe.has("detached") else h)
        return y

    def training_step(self, batch: Data, batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        y_hat = self(x)
        return {"loss": loss(self.recipe, y_hat, y), "pred": y_hat.detach()}

    def validation_step(self, batch: Data, batch_idx: int) -> Tensor:
        return loss(self.recipe, self(batch[0]), batch[1])
