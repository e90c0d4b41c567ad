"""Generates names in batches: inverse CDF, with one uniform random number for each name and position.

Name i has its own stream of random numbers, so it does not depend on how names are grouped into batches. To keep it
free of rounding too, the model is evaluated in float64 and always on CHUNK contexts at once. Then probabilities of two
groupings differ by 1e-15 at most, or not at all if a matrix product rounds all its rows in the same way.
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
LARGEST_SETTING = {"count": 10**12, "top_k": 10**12, "max_length": 10**6, "batch_size": 10**9}
TABLE = 2**22  # entries of the largest table of all contexts: twice 32 MB


class Name(NamedTuple):
    word: str
    log_likelihood: float
    """In nats, of the word and its end mark (unless it was cut), at temperature 1 and without top_k."""
    cut: bool
    """Whether max_length ended the word instead of the model."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to draw. Raises ValueError if a setting is out of range; the message names it."""

    count: int = 20
    seed: int = 42
    temperature: float = 1.0
    top_k: int | None = None
    """Draw only from the k likeliest characters, and from those as likely as the k-th; None: from all."""
    prompt: str = ""
    max_length: int = 50
    """A name is cut at this many characters, including the prompt."""
    unique: bool = False
    """Leave out names that were drawn before."""
    batch_size: int = 16_384
    """At most this many names are generated together. It bounds the memory and changes no name."""
    batch_statistics: bool = False
    """Leave BatchNorm in train mode, a mistake that the lecture warns of: names then depend on those in their batch."""

    def __post_init__(self) -> None:
        for key, most in LARGEST_SETTING.items():
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
    """SplitMix64's output (Steele, Lea and Flood 2014) after this many steps from a state, in wrapping int64."""
    z = state + torch.as_tensor(steps) * (0x9E3779B97F4A7C15 - 2**64)
    z = (z ^ (z >> 30 & 2**34 - 1)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ (z >> 27 & 2**37 - 1)) * (0x94D049BB133111EB - 2**64)
    return z ^ (z >> 31 & 2**33 - 1)


class Distributions:
    """The distributions of the next character after contexts, by a float64 copy of the model in eval mode without
    hooks.

    The copy is on the model's device; everything else is on the CPU.

    Raises:
        ValueError: the prompt has unknown characters, logits are not finite, or batch_statistics is set without
        BatchNorm.
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
        # a table of all contexts, if it is small and the names would need many of its rows anyway
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
            if not self.table:  # number the rows anew at each column, so that numbers can't overflow
                row = torch.unique(row, return_inverse=True)[1]
        if self.table:
            return *self.table, row
        representative = row.new_empty(int(row.max()) + 1).scatter_(0, row, torch.arange(len(row)))
        return *self.evaluate(contexts[representative]), row

    @torch.no_grad()
    def evaluate(self, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """CDFs and log-likelihoods of contexts (n, block_size): (n, vocab_size) float64."""
        # torch refuses batch statistics of a single context; of two copies of it the variance is 0 as well
        size = max(2, len(contexts)) if self.settings.batch_statistics else CHUNK
        filled = torch.cat([contexts, contexts[:1].expand(-len(contexts) % size, -1)])
        chunks = filled.to(self.device).split(size)
        # sent and fetched as a whole, so that the host does not wait for a GPU after each chunk
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
        # the CDF of the last possible character is exactly 1, which is above every uniform number
        return cdf / cdf[:, -1:], log_likelihood


def draw(indices: Tensor, distributions: Distributions) -> list[Name]:
    """The names with these indices (n,), generated together, one character at a time."""
    settings, n = distributions.settings, len(indices)
    # from a hash of the seed, because neighbouring seeds could share streams otherwise
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
    """The names of `sample`, in batches, as they are drawn."""
    settings, seen = distributions.settings, set(exclude)
    limit = max(10_000, 100 * settings.count) if settings.unique or seen else settings.count
    missing, drawn = settings.count, 0
    together = min(settings.batch_size, settings.count)
    # bytes of a name: its context, its distributions, and its characters
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
    """Names from the current model. Neither the model nor the global random state changes.

    Words of `exclude` are left out; `settings` are the other fields of Settings. With `exclude` or `unique` it stops
    after 100 * count draws (at least 10,000), and then can return fewer than count names.
    """
    distributions = Distributions(model, vocabulary, block_size, Settings(count, **settings))
    return [name for names in stream(distributions, exclude) for name in names]


def compare(running: Distributions, batch: Distributions) -> Iterator[tuple[str, ...]]:
    """Words by running statistics, and by statistics of their batch, of a batch twice as large, and of one name."""
    for indices in torch.arange(running.settings.count).split(running.settings.batch_size):
        crowd = torch.cat([indices, indices + running.settings.count])
        alone = (draw(index, batch)[0] for index in indices.split(1))
        ways = draw(indices, running), draw(indices, batch), draw(crowd, batch)[: len(indices)], alone
        yield from zip(*([name.word for name in way] for way in ways), strict=True)
