"""Batched generation of names: inverse CDF, with one uniform number for each name and position.

Name i has a stream of numbers of its own, so it is the same name however names are grouped into batches. Rounding must
not make it another: the model is evaluated in float64 and always on CHUNK contexts at once. Two groupings can then
differ by some 1e-15 of a probability, and by nothing where a matrix product rounds all its rows alike.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from makemore_pl.config.memory import refuse_beyond_memory
from makemore_pl.data import Vocabulary
from makemore_pl.module_copy import copy_without_hooks

CHUNK = 128  # contexts in one forward pass
MOST = {"count": 10**12, "top_k": 10**12, "max_length": 10**6, "batch_size": 10**9}
TABLE = 2**22  # entries of the largest table of all contexts: twice 32 MB


class Name(NamedTuple):
    word: str
    log_likelihood: float
    """Nats, of the whole word and its end mark (a cut one has none), at temperature 1 and without top_k."""
    cut: bool
    """Whether max_length ended it, and not the model."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to draw. Raises ValueError naming the setting that is out of range."""

    count: int = 20
    seed: int = 42
    temperature: float = 1.0
    top_k: int | None = None
    """Only the k likeliest characters, and any as likely as the k-th."""
    prompt: str = ""
    max_length: int = 50
    """Characters at which a name is cut, the prompt included."""
    unique: bool = False
    """Pass over names drawn before."""
    batch_size: int = 16_384
    """Names written together at most: bounds the memory, changes no name."""
    batch_statistics: bool = False
    """The lecture's trap, BatchNorm left in train mode: names depend on those written together with them."""

    def __post_init__(self) -> None:
        for key, most in MOST.items():
            if (value := getattr(self, key)) is not None and not 1 <= value <= most:
                bound = "at least 1" if value < 1 else f"at most {most:,}"
                raise ValueError(f"{key} must be {bound}, got {value}.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2**63), got {self.seed}.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be greater than 0 and finite, got {self.temperature}.")
        if len(self.prompt) >= self.max_length:
            raise ValueError(f"max_length={self.max_length} leaves nothing to draw after the prompt {self.prompt!r}.")


def splitmix64(state: Tensor, steps: Tensor | int) -> Tensor:
    """SplitMix64's output (Steele, Lea and Flood 2014) so many steps after a state; int64 that wraps as uint64 does."""
    z = state + torch.as_tensor(steps) * (0x9E3779B97F4A7C15 - 2**64)
    z = (z ^ (z >> 30 & 2**34 - 1)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ (z >> 27 & 2**37 - 1)) * (0x94D049BB133111EB - 2**64)
    return z ^ (z >> 31 & 2**33 - 1)


class Distributions:
    """The next character's distribution for contexts, from a float64 copy of the model in eval mode, without its hooks.

    The copy is on the model's device; all else happens on the CPU.

    Raises:
        ValueError: for a prompt outside the vocabulary, not finite logits, or batch_statistics without BatchNorm.
    """

    def __init__(self, model: nn.Module, vocabulary: Vocabulary, block_size: int, settings: Settings) -> None:
        self.vocabulary, self.block_size, self.settings = vocabulary, block_size, settings
        self.prompt = vocabulary.encode(settings.prompt)
        self.model = copy_without_hooks(model).double().eval()
        self.device = next(self.model.parameters()).device
        batchnorms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        nn.ModuleList(batchnorms).train(settings.batch_statistics)
        if settings.batch_statistics and not batchnorms:
            raise ValueError("The model has no BatchNorm, so it has no batch statistics to compare with.")
        self.table: tuple[Tensor, Tensor] | None = None
        contexts = len(vocabulary) ** block_size
        # where it is small, and the names would visit much of it anyway
        if contexts * len(vocabulary) <= TABLE and contexts <= 16 * settings.count and not settings.batch_statistics:
            characters = torch.arange(len(vocabulary))
            self.table = self.evaluate(torch.cartesian_prod(*[characters] * block_size).view(contexts, block_size))

    def __call__(self, contexts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """CDFs and log-likelihoods, (rows, vocab_size) float64, and the row (n,) of each context (n, block_size)."""
        if self.settings.batch_statistics:
            return *self.evaluate(contexts), torch.arange(len(contexts))
        row = torch.zeros(len(contexts), dtype=torch.int64)
        for column in contexts.T:
            row = row * len(self.vocabulary) + column
            if not self.table:  # numbered anew at each column: no vocabulary and no block_size is too large
                row = torch.unique(row, return_inverse=True)[1]
        if self.table:
            return *self.table, row
        representative = row.new_empty(int(row.max()) + 1).scatter_(0, row, torch.arange(len(row)))
        return *self.evaluate(contexts[representative]), row

    @torch.no_grad()
    def evaluate(self, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """CDFs and log-likelihoods of contexts (n, block_size): (n, vocab_size) float64."""
        # torch refuses the batch statistics of one context, whose variance is 0, as is that of two copies
        size = max(2, len(contexts)) if self.settings.batch_statistics else CHUNK
        filled = torch.cat([contexts, contexts[:1].expand(-len(contexts) % size, -1)])
        chunks = filled.to(self.device).split(size)
        # uploaded and fetched as a whole: a GPU is not waited for after each chunk
        logits = torch.cat([self.model(chunk) for chunk in chunks]).cpu()[: len(contexts)]
        assert logits.shape[1] == len(self.vocabulary)
        log_likelihood = logits.log_softmax(1)
        if log_likelihood.isnan().any():
            raise ValueError("The model's logits are not finite: no names can be drawn.")
        kept = log_likelihood - log_likelihood.amax(1, keepdim=True)
        if self.settings.top_k is not None:
            kth = kept.topk(min(self.settings.top_k, len(self.vocabulary))).values[:, -1:]
            kept = kept.masked_fill(kept < kth, -math.inf)
        cdf = (kept / self.settings.temperature).exp().cumsum(1)
        # the last character that can come gets exactly 1, which no uniform number reaches
        return cdf / cdf[:, -1:], log_likelihood


def draw(indices: Tensor, distributions: Distributions) -> list[Name]:
    """The names of these indices (n,), all of them written together, one character at a time."""
    settings, n = distributions.settings, len(indices)
    # from the hashed seed: else seeds could share streams
    keys = splitmix64(splitmix64(torch.tensor(settings.seed), 1), indices + 1)
    contexts = torch.zeros(n, distributions.block_size, dtype=torch.int64)
    written = torch.arange(n)  # the names that have not ended
    lengths = torch.full((n,), settings.max_length)
    log_likelihoods = torch.zeros(n, dtype=torch.float64)
    columns = []
    for position in range(settings.max_length):
        cdf, log_likelihood, row = distributions(contexts)
        if position < len(distributions.prompt):
            character = torch.full_like(row, distributions.prompt[position])
        else:
            uniform = (splitmix64(keys[written], position + 1) >> 11 & 2**53 - 1).double() * 2**-53
            character = torch.searchsorted(cdf.index_select(0, row), uniform.unsqueeze(1), right=True).squeeze(1)
        log_likelihoods[written] += log_likelihood[row, character]
        on, ended = character.nonzero().squeeze(1), (character == 0).nonzero().squeeze(1)
        lengths[written[ended]] = position
        written, character, contexts = written[on], character[on], contexts[on]
        if not len(written):
            break
        columns.append((written, character))
        contexts = torch.cat([contexts[:, 1:], character.unsqueeze(1)], dim=1)
    codes = torch.zeros(n, width := len(columns), dtype=torch.int32)
    alphabet = torch.tensor([0, *map(ord, distributions.vocabulary.characters)], dtype=torch.int32)
    for position, (rows, character) in enumerate(columns):
        codes[rows, position] = alphabet[character]
    text = codes.numpy().astype("<i4").tobytes().decode("utf-32-le")
    words = [text[i * width : i * width + length] for i, length in enumerate(lengths.tolist())]
    return list(map(Name, words, log_likelihoods.tolist(), (lengths == settings.max_length).tolist()))


def stream(distributions: Distributions, exclude: Iterable[str] = ()) -> Iterator[list[Name]]:
    """As sample, batch by batch as they are drawn."""
    settings, seen = distributions.settings, set(exclude)
    limit = max(10_000, 100 * settings.count) if settings.unique or seen else settings.count
    missing, drawn = settings.count, 0
    together = min(settings.batch_size, settings.count)
    # contexts, as many distributions, and a row of characters
    each = 8 * (distributions.block_size + 3 * len(distributions.vocabulary)) + 4 * settings.max_length
    refuse_beyond_memory(together * each, f"{together:,} names at once", "use a smaller batch_size")
    while missing > 0 and drawn < limit:
        n = min(settings.batch_size, max(missing, 256), limit - drawn)
        names = []
        for name in draw(torch.arange(drawn, drawn + n), distributions):
            if name.word not in seen:
                names.append(name)
                if settings.unique:
                    seen.add(name.word)
        yield names[:missing]
        missing, drawn = missing - len(names), drawn + n


def sample(
    model: nn.Module, vocabulary: Vocabulary, count: int, block_size: int, exclude: Iterable[str] = (), **settings: Any
) -> list[Name]:
    """Names from the model as it is now; neither the model nor the global random state changes.

    Words of `exclude` are passed over; `settings` are the other fields of Settings. Fewer than count names come back
    where 100 * count draws, and 10,000, don't hold as many that are not in `exclude` and, if asked for, `unique`.
    """
    distributions = Distributions(model, vocabulary, block_size, Settings(count, **settings))
    return [name for names in stream(distributions, exclude) for name in names]


def compare(running: Distributions, batch: Distributions) -> Iterator[tuple[str, ...]]:
    """Words by running statistics, and by those of their batch, of a batch twice as large, and of themselves alone."""
    for indices in torch.arange(running.settings.count).split(running.settings.batch_size):
        crowd = torch.cat([indices, indices + running.settings.count])
        alone = (draw(index, batch)[0] for index in indices.split(1))
        ways = draw(indices, running), draw(indices, batch), draw(crowd, batch)[: len(indices)], alone
        yield from zip(*([name.word for name in way] for way in ways), strict=True)
