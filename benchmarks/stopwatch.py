"""Steady state: the time between two steps of a run."""

import resource
import time

from benchmarks.process import peak_memory_mb


class Stopwatch:
    """Called with the number of steps done, after each step or stride; measures from `warmup` to `steps` of them."""

    def __init__(self, warmup: int, steps: int) -> None:
        self.ends = (warmup, steps)
        self.times: list[tuple[float, float]] = []

    def __call__(self, step: int) -> None:
        if step in self.ends:
            self.times.append((time.perf_counter(), time.process_time()))

    def measured(self) -> dict[str, float]:
        """µs a step by the clock and in CPU time, the seconds measured, the warm-up steps, and peak memory in MB."""
        warmup, steps = self.ends
        seconds, cpu_seconds = (ended - started for started, ended in zip(*self.times, strict=True))
        return {
            "us": seconds / (steps - warmup) * 1e6,
            "cpu_us": cpu_seconds / (steps - warmup) * 1e6,
            "measured_seconds": seconds,
            "cpu_measured_seconds": cpu_seconds,
            "warmup": warmup,
            "memory_mb": peak_memory_mb(resource.getrusage(resource.RUSAGE_SELF)),
        }
