"""Vocabulary, context windows, splits, and the data module that draws minibatches."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from makemore_pl.config import DataConfig, TrainerConfig
from makemore_pl.config.memory import refuse_beyond_memory
from makemore_pl.stride.pinned import send
from makemore_pl.stride.watched_steps import Stride, Strides, validation_due
from makemore_pl.words import END, fingerprint, load_words

SPLITS = ("train", "val", "test")
SPLIT_SEED = 42
VALIDATION_BATCH = 16_384
"""Examples in one batch of a validation. This bounds the memory that a validation takes."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Characters and their indices: 0 is the end mark, then the characters of the words, sorted."""

    characters: str

    @classmethod
    def of(cls, words: Sequence[str]) -> "Vocabulary":
        return cls("".join(sorted(set("".join(words)))))

    def __len__(self) -> int:
        return len(self.characters) + 1

    def encode(self, word: str) -> list[int]:
        """Indices of the word's characters.

        Raises:
            ValueError: the vocabulary lacks characters of the word; the message names them.
        """
        if unknown := sorted(set(word) - set(self.characters)):
            raise ValueError(f"{word!r} has characters outside the vocabulary: {' '.join(unknown)}")
        return [self.characters.index(character) + 1 for character in word]


def examples(words: list[str], vocabulary: Vocabulary, block_size: int) -> tuple[Tensor, Tensor]:
    """Every context and the character that follows it, word by word.

    Returns:
        int64 tensors (N, block_size) and (N,); N is the number of characters, end marks included.
    """
    index = {character: i for i, character in enumerate(END + vocabulary.characters)}
    padding = [-1] * block_size
    stream: list[int] = []
    for word in words:
        stream += padding
        stream += [index[character] for character in word]
        stream.append(0)
    windows = torch.tensor(stream).unfold(0, block_size + 1, 1)
    windows = windows[windows[:, -1] >= 0].clamp(min=0)
    return windows[:, :-1].contiguous(), windows[:, -1].contiguous()


def split_words(words: Sequence[str]) -> dict[str, list[str]]:
    """Train, validation and test split, 80/10/10, after the lecture's shuffle."""
    shuffled = list(words)
    random.Random(SPLIT_SEED).shuffle(shuffled)
    n1, n2 = int(0.8 * len(shuffled)), int(0.9 * len(shuffled))
    return {"train": shuffled[:n1], "val": shuffled[n1:n2], "test": shuffled[n2:]}


def split_examples(words: list[str], block_size: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The examples of each split. The next job of this process with the same words shares the tensors."""
    return dict(_split_examples(tuple(words), block_size))


@lru_cache(maxsize=2)
def _split_examples(words: tuple[str, ...], block_size: int) -> dict[str, tuple[Tensor, Tensor]]:
    vocabulary = Vocabulary.of(words)
    # bytes of int64 contexts and targets; while they are made there are three copies: windows, selection, result
    needed = 3 * 8 * (block_size + 1) * (sum(map(len, words)) + len(words))
    refuse_beyond_memory(needed, "The examples", "use a smaller data.block_size, or fewer words")
    return {split: examples(part, vocabulary, block_size) for split, part in split_words(words).items()}


class Chunks:
    """A split in chunks of at most VALIDATION_BATCH examples.

    This is not a DataLoader, because that draws from torch's global generator in each pass.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.chunks = list(zip(x.split(VALIDATION_BATCH), y.split(VALIDATION_BATCH), strict=True))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.chunks)

    def __len__(self) -> int:
        return len(self.chunks)


class Minibatches:
    """The minibatches of one stride, which Lightning takes for one batch. They are drawn when they are asked for.

    So a stride needs memory only for the minibatches that are asked for at once. And the generator in a checkpoint has
    drawn the minibatches of the steps taken and no more, although Lightning fetches one batch ahead.
    """

    def __init__(self, count: int, draw: Callable[[int], tuple[Tensor, Tensor]]) -> None:
        self.count = count
        self.draw = draw
        """n -> the next n minibatches: contexts (n, B, block_size) and targets (n, B)."""

    def __len__(self) -> int:
        return self.count

    def unwatched(self, most: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All minibatches but the last one, at most `most` at a time."""
        for drawn in range(0, self.count - 1, most):
            yield self.draw(min(most, self.count - 1 - drawn))

    def watched(self) -> tuple[Tensor, Tensor]:
        """The last minibatch, (B, block_size) and (B,). Call it after `unwatched`: the order of draws counts."""
        x, y = self.draw(1)
        return x[0], y[0]


class NamesDataModule(LightningDataModule):
    """The splits of a word list, and minibatches drawn from them with replacement by one generator.

    A batch of the training loader is one stride. The examples stay on the device; only indices are sent to it.

    Args:
        config: word list, block_size, batch_size.
        trainer_config: which steps are watched.
        generator: has drawn the parameters, and draws the minibatches. Its state is part of the checkpoint.
    """

    def __init__(self, config: DataConfig, trainer_config: TrainerConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.trainer_config = trainer_config
        self.generator = generator
        self.words = load_words(config)
        self.vocabulary = Vocabulary.of(self.words)
        self.examples = split_examples(self.words, config.block_size)

    def train_dataloader(self) -> Strides:
        assert self.trainer is not None
        trainer = self.trainer
        return Strides(self.trainer_config, lambda: trainer.global_step)

    def val_dataloader(self) -> Chunks:
        return Chunks(*self.examples["val"])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if isinstance(batch, Stride):
            assert self.trainer is not None
            # Lightning would count batches, which are strides, but validation is due by step
            self.trainer.val_check_batch = 1 if validation_due(batch.watched, self.trainer_config) else float("inf")
            return Minibatches(batch.watched - batch.first + 1, lambda count: self.minibatches(count, device))
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def minibatches(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The next `count` minibatches: (count, B, block_size) and (count, B), where B is this process's share."""
        x, y = (tensor.to(device) for tensor in self.examples["train"])
        self.examples["train"] = (x, y)
        indices = torch.randint(len(y), (count, self.config.batch_size), generator=self.generator)
        if self.trainer is not None and self.trainer.world_size > 1:
            indices = indices[:, self.trainer.global_rank :: self.trainer.world_size]
        indices = send(indices, device)
        return x[indices], y[indices]

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "words": fingerprint(self.words)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.generator.set_state(state_dict["generator"].cpu())
