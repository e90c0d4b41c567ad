"""What was measured: medians, spreads, ratios, and the goals for the ratios."""

import statistics
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks.contenders import CONTENDERS, FLOOR, OURS
from benchmarks.networks import NETWORKS

WATCHED = "3, whole command, warm"
"""The default callbacks may make the whole command slower by this factor."""
GOALS = {
    ("batchnorm", "4", "1a"): 4.0,
    ("batchnorm", "4", "1b"): 3.5,
    ("batchnorm", "4", "2"): 10.0,
    ("batchnorm", "4", "cold"): 2.5,
    ("batchnorm", "4", "warm"): 3.2,
    ("batchnorm", "4", WATCHED): 1.05,
    ("batchnorm", "3", FLOOR): 2.2,
    ("kaiming", "4", "1a"): 3.0,
    ("deep_batchnorm", "4", "1a"): 6.0,
    ("deep_batchnorm", "4", "1a+"): 8.0,
    ("deep_batchnorm", "4", "1b"): 3.2,
    **{(network, ours, "1b"): 1.0 for network in NETWORKS for ours in ("3e", "4e")},
}
"""Network, contender and what it is compared with: a contender's steady state, 1a's whole command with a cold or a warm
cache, 3's whole command, or the floor, which unwatched steps are held against. At least so many times faster; of the
last two, at most so many times slower."""
AT_MOST = (FLOOR, WATCHED)
WALL, CPU = "", "cpu_"
"""Prefixes of a record's keys for wall-clock time and CPU time. A busy machine changes CPU time least."""


class Spread(NamedTuple):
    median: float
    low: float
    high: float
    measured: bool = True
    """Whether the value was measured; otherwise it is extrapolated."""

    @classmethod
    def of(cls, values: list[float], measured: bool = True) -> "Spread | None":
        return cls(statistics.median(values), min(values), max(values), measured) if values else None


@dataclass(slots=True)
class Results:
    """Records of single measurements, each with network, contender, kind and numbers.

    Kinds are steady (some steps of a run), cold and warm (our whole command with an empty or a full cache), and whole
    (the whole command of a loop).

    Args:
        command_steps: number of steps of a whole command.
    """

    command_steps: int
    records: list[dict[str, Any]] = field(default_factory=list)

    def spread(self, network: str, contender: str, kind: str, key: str) -> Spread | None:
        return Spread.of([record[key] for record in self._of(network, contender, kind) if key in record])

    def steady(self, network: str, contender: str, clock: str = WALL) -> Spread | None:
        """µs a step."""
        return self.spread(network, contender, "steady", clock + "us")

    def command(self, network: str, contender: str, cache: str, clock: str = WALL) -> Spread | None:
        """Seconds of the whole command. For a loop that was not run completely they are extrapolated."""
        if contender in OURS:
            return self.spread(network, contender, cache, clock + "seconds")
        if whole := self.spread(network, contender, "whole", clock + "seconds"):
            return whole
        seconds, measured, us = (clock + key for key in ("seconds", "measured_seconds", "us"))
        return Spread.of(
            [
                each[seconds] - each[measured] + (self.command_steps - each["warmup"]) * each[us] / 1e6
                for each in self._of(network, contender, "steady")
            ],
            measured=False,
        )

    def ratio(self, network: str, contender: str, against: str, clock: str = WALL) -> float | None:
        """Ratio of the medians: how many times faster, or slower than the floor, it is. `against` is as in GOALS."""
        if against == FLOOR:
            theirs = self.spread(network, contender, "steady", clock + "unwatched_us")
            ours = self.steady(network, FLOOR, clock)
        elif against == WATCHED:
            theirs = self.command(network, contender, "warm", clock)
            ours = self.command(network, "3", "warm", clock)
        elif against in ("cold", "warm"):
            theirs = self.command(network, "1a", against, clock)
            ours = self.command(network, contender, against, clock)
        else:
            theirs, ours = self.steady(network, against, clock), self.steady(network, contender, clock)
        return theirs.median / ours.median if theirs and ours else None

    def verdict(self, network: str, contender: str, against: str) -> dict[str, Any] | None:
        """The goal of a ratio and whether it is reached; None if there is no goal or no ratio."""
        bound = GOALS.get((network, contender, against))
        ratio = self.ratio(network, contender, against)
        if bound is None or ratio is None:
            return None
        if against in AT_MOST:
            return {"goal": f"≤ {bound:g}", "reached": ratio <= bound}
        return {"goal": f"≥ {bound:g}", "reached": ratio >= bound}

    def core_shares(self) -> list[float]:
        """The share of a core that each process had while it was measured."""
        return [record["cpu_us"] / record["us"] for record in self.records if record["kind"] == "steady"]

    def networks(self) -> list[str]:
        return list(dict.fromkeys(record["network"] for record in self.records))

    def summary(self) -> list[dict[str, Any]]:
        """An entry for each network and contender, with its ratios and goals."""
        entries = []
        for network in self.networks():
            for contender in (*CONTENDERS, FLOOR):
                if not (steady := self.steady(network, contender)):
                    continue
                entry: dict[str, Any] = {"network": network, "contender": contender, "us": steady._asdict()}
                for cache in ("cold", "warm"):
                    if command := self.command(network, contender, cache):
                        entry[f"{cache}_seconds"] = command._asdict()
                entry["ratios"] = {}
                for against in (*CONTENDERS, "cold", "warm", WATCHED, FLOOR):
                    if ratio := self.ratio(network, contender, against):
                        verdict = self.verdict(network, contender, against) or {}
                        of_cpu = self.ratio(network, contender, against, CPU)
                        entry["ratios"][against] = {"value": ratio, "of_cpu_time": of_cpu, **verdict}
                entries.append(entry)
        return entries

    def _of(self, network: str, contender: str, kind: str) -> list[dict[str, Any]]:
        wanted = (network, contender, kind)
        return [each for each in self.records if (each["network"], each["contender"], each["kind"]) == wanted]
