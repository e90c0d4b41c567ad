"""Which steps are watched. A stride is a series of steps that ends with a watched one."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from makemore_pl.config import TrainerConfig


class Stride(NamedTuple):
    """A series of steps whose last one is watched. Steps count from 0."""

    first: int
    watched: int


def next_watched(step: int, config: TrainerConfig) -> int:
    """The first watched step at or after `step`.

    Watched are the steps 0, 1, 2, 5, 10, 20, 50, ... below watch_every, all multiples of watch_every, all steps after
    which validation is due, and the last step.
    """
    early = [n * int(10**power) for power in range(len(str(config.watch_every))) for n in (1, 2, 5)]
    candidates = [watched for watched in (0, *early) if step <= watched < config.watch_every]
    for every in (config.watch_every, config.val_check_interval):
        candidates.append(max(1, -(-step // every)) * every)
    candidates.append(config.max_steps - 1)
    return min(candidate for candidate in candidates if candidate >= step)


def validation_due(watched: int, config: TrainerConfig) -> bool:
    """Whether to validate after this watched step: it is a multiple of val_check_interval, or the last step."""
    return watched == config.max_steps - 1 or (watched > 0 and watched % config.val_check_interval == 0)


class Strides:
    """Iterates over the strides from the current step of the training to max_steps."""

    def __init__(self, config: TrainerConfig, step: Callable[[], int]) -> None:
        self.config = config
        self.step = step

    def __iter__(self) -> Iterator[Stride]:
        first = self.step()
        while first < self.config.max_steps:
            watched = next_watched(first, self.config)
            yield Stride(first, watched)
            first = watched + 1
