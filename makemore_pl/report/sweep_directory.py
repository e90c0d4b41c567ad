"""The numbers of a sweep: what was varied, means over seeds, and which early diagnostics predict the final loss."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from makemore_pl.diagnostics_file import Diagnostics, read_diagnostics
from makemore_pl.figures.series import Floats, floats
from makemore_pl.report.command import SHOWN_ONLY
from makemore_pl.report.run_directory import Run, flatten, is_run, read_overrides, read_run
from makemore_pl.report.wording import number, show
from makemore_pl.stored_files import read_json, read_yaml

UNVARIED = ("run_dir", "ckpt_path", *SHOWN_ONLY)
EARLY_STEPS = (200, 1000)
"""Steps whose diagnostics are correlated with the final loss."""
FEWEST = 8
"""Groups with fewer jobs get no rank correlation, because among few jobs it can be strong by chance."""


def is_sweep(directory: Path) -> bool:
    return (
        directory.is_dir()
        and not is_run(directory)
        and any(_job_directories(directory) or directory.rglob("failure.json"))
    )


def _job_directories(directory: Path) -> list[Path]:
    """All folders below that have a config.yaml, or only Hydra's .hydra/config.yaml if a job failed early."""
    found = {path.parent for path in directory.rglob("config.yaml") if path.is_file()}
    jobs = {path.parent if path.name == ".hydra" else path for path in found}
    return sorted(jobs, key=lambda job: [(not part.isdigit(), part.zfill(9)) for part in job.parts])


def read_runs(directory: Path) -> tuple[list[Run], dict[str, str]]:
    """The jobs of a sweep, finished or not, in the order of their folders' names; and job -> reason for the others.

    Others were refused before they had a config, or a file of theirs can't be read. Only the values of diagnostics are
    read, no histograms or rasters.

    Raises:
        ValueError: there are no jobs.
    """
    jobs = _job_directories(directory)
    lost = {path.parent: _reason(path.parent) for path in sorted(directory.rglob("failure.json"))}
    if not jobs and not lost:
        raise ValueError(f"{directory} is not a sweep directory: no folder in it has a config.yaml.")
    runs = []
    for job in jobs:
        try:
            run = read_run(job, ("values",)) if is_run(job) else _unborn(job)
            runs.append(replace(run, job=job.relative_to(directory).as_posix()))
            lost.pop(job, None)
        except (OSError, ValueError) as error:  # one damaged run must not take the page from all others
            lost[job] = str(error)
    return runs, {job.relative_to(directory).as_posix(): reason for job, reason in lost.items()}


def _unborn(job: Path) -> Run:
    config = read_yaml(job / ".hydra" / "config.yaml", dict)
    return Run(job, config, {}, read_diagnostics(job / "diagnostics.jsonl", ("values",)), read_overrides(job), [])


def varied_keys(runs: Sequence[Run]) -> list[str]:
    """Dotted config keys that differ between the jobs, in the order of the config, without paths below a job."""
    flats = [_settings(run) for run in runs]
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    return [key for key in keys if len({repr(flat[key]) for flat in flats if key in flat}) > 1]


def _settings(run: Run) -> dict[str, Any]:
    place = run.config.get("run_dir") or "\0"
    return {
        key: value
        for key, value in flatten(run.config).items()
        if key not in UNVARIED and not (isinstance(value, str) and (value.startswith(str(place)) or "${" in value))
    }


def independent_keys(runs: Sequence[Run], keys: Iterable[str]) -> list[str]:
    """The keys without `seed` and without those that are determined by others; `experiment` comes first.

    A sweep over experiments varies model.init, model.gain and more, but together: then only `experiment` is left.
    """
    settings = [_settings(run) for run in runs]
    chosen: list[str] = []
    for key in sorted((key for key in keys if key != "seed"), key=lambda key: key != "experiment"):
        seen: dict[str, set[str]] = {}
        for setting in settings:
            seen.setdefault(repr([setting.get(one) for one in chosen]), set()).add(repr(setting.get(key)))
        if any(len(values) > 1 for values in seen.values()):
            chosen.append(key)
    return chosen


def comparable(runs: Sequence[Run], *also: str) -> dict[str, list[Run]]:
    """The runs in groups with the same steps, words, and values of the config keys `also`: label -> runs.

    Losses after different numbers of steps, or on different words, can't be compared. The largest group comes first.
    """
    keys = ("trainer.max_steps", *also)
    facts = [
        {key: show(run.get(key)) for key in keys} | {"words": source}
        for run, source in zip(runs, words(runs), strict=True)
    ]
    apart = [key for key in (*keys, "words") if len({fact[key] for fact in facts}) > 1]
    groups: dict[str, list[Run]] = {}
    for run, fact in zip(runs, facts, strict=True):
        groups.setdefault(", ".join(f"{key}={fact[key]}" for key in apart), []).append(run)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def words(runs: Sequence[Run]) -> list[str]:
    """The name of each run's words, which is their source or path. Equal words have equal names.

    If the file has changed between runs, the start of the fingerprint is added. An unfinished run has no fingerprint;
    it gets the name of a run with the same data settings.
    """
    sources = [show(run.get("data.path") or run.get("data.source")) for run in runs]
    prints = [str(run.metrics.get("words_sha256") or "") for run in runs]
    data = [repr(run.config.get("data")) for run in runs]
    known: dict[str, str] = {}
    for settings, fingerprint in zip(data, prints, strict=True):
        if fingerprint:
            known.setdefault(settings, fingerprint)
    prints = [fingerprint or known.get(settings, "") for settings, fingerprint in zip(data, prints, strict=True)]
    called: dict[str, str] = {}
    for fingerprint, source in zip(prints, sources, strict=True):
        called.setdefault(fingerprint or source, source)
    changed = {name for name, times in Counter(called.values()).items() if times > 1}
    names = [called[fingerprint or source] for fingerprint, source in zip(prints, sources, strict=True)]
    return [
        f"{name} {fingerprint[:8]}".strip() if name in changed else name
        for name, fingerprint in zip(names, prints, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean and unbiased standard deviation of n finite numbers; `mean` is nan for n = 0, `std` for n < 2."""

    mean: float
    std: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Mean":
        numbers = floats(list(values))
        numbers = numbers[np.isfinite(numbers)]
        mean = float(numbers.mean()) if numbers.size else math.nan
        return cls(mean, float(numbers.std(ddof=1)) if numbers.size > 1 else math.nan, numbers.size)

    def __str__(self) -> str:
        return number(self.mean) + (f" ± {number(self.std)}" if math.isfinite(self.std) else "")


@dataclass(frozen=True, slots=True)
class Row:
    """One setting of the varied keys, with its runs of all seeds."""

    setting: dict[str, Any]
    runs: list[Run]

    def metric(self, key: str) -> Mean:
        """Mean over the seeds of a number in metrics.json."""
        return Mean.of(run.metrics.get(key) for run in self.runs)

    def early(self, quantity: str, step: int | None) -> Mean:
        """Mean over the seeds of a diagnostic's layer mean."""
        return Mean.of(layer_mean(run.diagnostics, quantity, step) for run in self.runs)

    @property
    def label(self) -> str:
        return " ".join(f"{key}={show(value)}" for key, value in self.setting.items())


def rows(runs: Sequence[Run], keys: Sequence[str]) -> list[Row]:
    """The jobs grouped by the values of these keys, in the order in which these first occur."""
    groups: dict[str, Row] = {}
    for run in runs:
        settings = _settings(run)
        setting = {key: settings.get(key) for key in keys}
        groups.setdefault(repr(setting), Row(setting, [])).runs.append(run)
    return list(groups.values())


def failures(runs: Iterable[Run]) -> list[tuple[Run, str]]:
    """Jobs that failed, each with its reason."""
    return [(run, _reason(run.directory)) for run in runs if not _is_finished(run) and _has_failed(run)]


def unfinished(runs: Iterable[Run]) -> list[Run]:
    """Jobs that still run or were interrupted."""
    return [run for run in runs if not _is_finished(run) and not _has_failed(run)]


def _is_finished(run: Run) -> bool:
    return "val/loss" in run.metrics


def _has_failed(run: Run) -> bool:
    return (run.directory / "failure.json").is_file()


def _reason(directory: Path) -> str:
    try:
        return read_json(directory / "failure.json").get("reason") or "not known"
    except (OSError, ValueError) as error:
        return str(error)


def layer_mean(diagnostics: Diagnostics, quantity: str, step: int | None) -> float:
    """Mean over layers or parameters of the last value at or before `step`, but not before `step` / 2; nan without any.

    With `step` None it is the mean of the last values. A quantity can also be a whole tag such as `train/loss`.
    """
    tags = [tag for tag in diagnostics.values if tag == quantity or tag.startswith(f"{quantity}/")]
    numbers = []
    for tag in tags:
        by = diagnostics.values[tag]
        if steps := [measured for measured in by if step is None or step / 2 <= measured <= step]:
            numbers.append(by[max(steps)])
    return Mean.of(numbers).mean


@dataclass(frozen=True, slots=True)
class Correlation:
    """Spearman's rank correlation between a diagnostic at an early step and the final validation loss, over n jobs.

    `rho` is the mean over groups of comparable jobs, weighted by their sizes.
    """

    quantity: str
    step: int
    rho: float
    n: int


def correlations(
    runs: Sequence[Run], quantities: Iterable[str] | None = None, steps: Iterable[int] = EARLY_STEPS
) -> list[Correlation]:
    """Correlations of every diagnostic's layer mean, and of train/loss, with val/loss. The strongest come first.

    They are computed within groups of equal steps, words, batch size and block_size. Losses of different groups differ
    anyway, and a diagnostic that depends on the batch size only would seem to predict them. Jobs without a final loss
    or without the diagnostic at that step are left out, and so are groups in which fewer than FEWEST jobs are left.
    """
    tags = {tag for run in runs for tag in run.diagnostics.values}
    apart = ("train", "val", "lr", "baseline", "baseline_passed")
    if quantities is None:
        own = {tag.partition("/")[0] for tag in tags}
        quantities = sorted(own - set(apart)) + [tag for tag in ("train/loss",) if tag in tags]
    groups = list(comparable(runs, "data.batch_size", "data.block_size").values())
    found = []
    for quantity in quantities:
        for step in steps:
            parts = [_within(group, quantity, step) for group in groups]
            parts = [(rho, n) for rho, n in parts if math.isfinite(rho)]
            if n := sum(n for _, n in parts):
                found.append(Correlation(quantity, step, sum(rho * n for rho, n in parts) / n, n))
    return sorted(found, key=lambda correlation: -abs(correlation.rho))


def _within(group: Sequence[Run], quantity: str, step: int) -> tuple[float, int]:
    """Rank correlation over one group (nan with fewer than FEWEST jobs), and the number of its jobs."""
    pairs = [(layer_mean(run.diagnostics, quantity, step), run.metrics.get("val/loss")) for run in group]
    points = floats([pair for pair in pairs if pair[1] is not None]).reshape(-1, 2)
    points = points[np.isfinite(points).all(1)]
    return (spearman(points[:, 0], points[:, 1]) if len(points) >= FEWEST else math.nan), len(points)


def compared(found: Sequence[Correlation]) -> str:
    """A sentence that tells how many correlations there were, because some of many are strong by chance."""
    quantities, steps = {correlation.quantity for correlation in found}, {correlation.step for correlation in found}
    return (
        f"Compared: {len(found)} correlations (diagnostics: {len(quantities)}, steps: {len(steps)}); "
        "among many, some are strong by chance. Each is among jobs of equal steps, words and batch size."
    )


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Rank correlation; ties get their mean rank. It is nan for fewer than three points or if one side is constant."""
    x, y = ranks(x), ranks(y)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def ranks(values: ArrayLike) -> Floats:
    """Ranks from 1; ties get their mean rank."""
    _, inverse, counts = np.unique(floats(values), return_inverse=True, return_counts=True)
    mean_ranks: Floats = np.cumsum(counts) - (counts - 1) / 2
    return mean_ranks[inverse]
