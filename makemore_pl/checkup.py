"""Examine a configuration: train it briefly, say what is wrong, and prove by re-runs that a change mends it."""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from makemore_pl.command_line import command, typed
from makemore_pl.config import Config
from makemore_pl.config.stored_config import load_config
from makemore_pl.doctor.diagnosis import diagnose
from makemore_pl.doctor.finding import SEVERITIES, Diagnosis, Prescription
from makemore_pl.doctor.plain_words import verdict
from makemore_pl.doctor.prescribing import combined, prescribe
from makemore_pl.doctor.recorded_run import read_evidence
from makemore_pl.doctor.verifying import compare
from makemore_pl.report.command import applied
from makemore_pl.report.command import overrides as differing
from makemore_pl.report.run_directory import read_overrides
from makemore_pl.report.sweep_directory import is_sweep
from makemore_pl.running.output import wrapped
from makemore_pl.train import run

log = logging.getLogger(__name__)

STEPS = {"trainer.max_steps": "2000", "trainer.watch_every": "50", "trainer.val_check_interval": "500"}
"""The length of a brief training. The user's own overrides of these keys come first."""
QUICK = ["trainer=cpu", "trainer.engine=eager", "trainer.enable_progress_bar=false", "logger=jsonl"]
SEEDS = 3


class Compose(Protocol):
    """Overrides -> config of a run in a directory."""

    def __call__(self, overrides: Sequence[str], run_dir: str = ".") -> Config: ...


@dataclass(frozen=True, slots=True)
class Report:
    """The diagnosis of one configuration, and the overrides that run it."""

    name: str
    diagnosis: Diagnosis
    overrides: list[str] | None
    """The overrides for scripts/train.py; None if they are not known."""
    loss: float | None = None

    def lines(self) -> list[str]:
        """The diagnosis in sentences, and the commands that apply the prescriptions."""
        lines = [self.name, *(line for words in verdict(self.diagnosis) for line in wrapped(words))]
        changed = self.overrides is not None and mended(self.overrides, self.diagnosis.prescriptions)
        if changed:
            lines += ["Run it with these changes:", "    " + command("train.py", *changed)]
            lines += ["Examine them:", "    " + command("doctor.py", *changed)]
        return lines

    def fails(self, fail_on: str) -> bool:
        """Whether a finding is at least so severe."""
        worst = self.diagnosis.worst()
        return fail_on != "never" and worst is not None and SEVERITIES.index(worst) >= SEVERITIES.index(fail_on)


def examined_overrides(overrides: Sequence[str], compose: Compose, say: Callable[[str], None]) -> Report:
    """Train briefly and diagnose; with doctor.verify, run the prescriptions again."""
    overrides = list(overrides)
    short = brief(overrides)
    config = compose(short)
    diagnosis, loss = examine(short, compose)
    if config.doctor.verify and diagnosis.prescriptions:
        verified = verify(short, diagnosis.prescriptions, compose, config.doctor.seeds, say)
        diagnosis = replace(diagnosis, prescriptions=tuple(verified))
    steps = f"{config.experiment}, {config.trainer.max_steps:,} steps, validation loss {loss:.4f}"
    return Report(steps, diagnosis, [override for override in overrides if not override.startswith("doctor.")], loss)


def examined_directory(directory: Path, compose: Compose) -> list[Report]:
    """The diagnosis of a run, or of each job of a sweep that has recorded something.

    Raises:
        ValueError: there is no run, or no job has recorded anything.
    """
    if not is_sweep(directory):
        return [Report(str(directory), examine_run(directory), _overrides_of(directory, compose))]
    reports: list[Report] = []
    damaged = None
    for job in sorted(path.parent for path in directory.rglob("diagnostics.jsonl")):
        try:
            reports.append(Report(str(job), examine_run(job), _overrides_of(job, compose)))
        except ValueError as error:  # one damaged run must not hide what is wrong with the others
            log.warning("Left out: %s", error)
            damaged = error
    if not reports:
        raise damaged or ValueError(f"No job of {directory} has a diagnostics.jsonl: run them with logger=jsonl.")
    return reports


def _overrides_of(run_dir: Path, compose: Compose) -> list[str]:
    """The overrides that were typed for this run; if Hydra did not keep them, those that give its config again."""
    typed_then = read_overrides(run_dir)
    if typed_then is not None:
        return typed_then
    config = load_config(run_dir)
    start = [] if config.experiment == "default" else [f"+experiment={typed(config.experiment)}"]
    try:
        base = compose(start)
    except Exception:  # an experiment that is gone
        start, base = [], compose([])
    return [
        *start,
        *differing(asdict(replace(config, callbacks={}, logger={})), asdict(replace(base, callbacks={}, logger={}))),
    ]


def brief(overrides: Sequence[str]) -> list[str]:
    """The overrides of a brief training, which measures everything and draws no pictures."""
    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    defaults = [f"{key}={value}" for key, value in STEPS.items() if key not in given]
    return [*(override for override in QUICK if override.partition("=")[0] not in given), *defaults, *overrides]


def examine_run(run_dir: Path) -> Diagnosis:
    """The diagnosis of a recorded run.

    Raises:
        ValueError: it holds no run, or one that recorded nothing.
    """
    evidence, config = read_evidence(run_dir)
    diagnosis = diagnose(evidence)
    return replace(diagnosis, prescriptions=prescribe(diagnosis, evidence, config))


def examine(overrides: Sequence[str], compose: Compose) -> tuple[Diagnosis, float]:
    """Train in a temporary directory; returns the diagnosis and the final validation loss."""
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        config = compose(overrides, f"{scratch}/run")
        loss = trained(replace(config, callbacks=_measuring(config)))
        return examine_run(Path(config.run_dir)), loss


def verify(
    overrides: Sequence[str],
    prescriptions: Sequence[Prescription],
    compose: Compose,
    seeds: int = SEEDS,
    say: Callable[[str], None] = lambda line: None,
) -> list[Prescription]:
    """Run the baseline, and the baseline with each prescription, from the same seeds."""
    first = compose(overrides).seed
    chosen = [first, *(seed for seed in range(1, seeds + 1) if seed != first)][:seeds]

    def losses(changes: Sequence[str]) -> list[float]:
        with tempfile.TemporaryDirectory() as scratch, _quiet():
            config = replace(compose(applied(overrides, changes)), callbacks={}, logger={})
            return [trained(replace(config, seed=seed, run_dir=f"{scratch}/{seed}")) for seed in chosen]

    before = losses([])
    verified = []
    for prescription in prescriptions:
        if not prescription.overrides:
            verified.append(prescription)
            continue
        comparison = compare(before, after := losses(prescription.overrides))
        trial = (
            f"{_numbers(before)} before, {_numbers(after)} after, mean improvement {comparison.improvement:.3f} nats, "
            f"paired t-test over {seeds} seeds p = {comparison.p_better:.2g}"
        )
        say(f"{prescription.finding}: {comparison.verdict}: {trial}")
        verified.append(replace(prescription, verified=comparison.verdict, trial=trial))
    return verified


def mended(overrides: Sequence[str], prescriptions: tuple[Prescription, ...]) -> list[str] | None:
    """The overrides with every prescription that was not refuted; None if that changes nothing."""
    good = tuple(prescription for prescription in prescriptions if prescription.verified != "refuted")
    changes = combined(good)
    return applied(overrides, changes) if changes else None


def trained(config: Config) -> float:
    """Train; returns the final validation loss, or infinity if a number became NaN or infinite.

    Raises:
        Stopped: by a signal.
    """
    try:
        return float(run(config, announce=False)["val/loss"])
    except FloatingPointError:
        return float("inf")


def _measuring(config: Config) -> dict[str, dict[str, object]]:
    """The callbacks without those that draw pictures or generate names."""
    drawing = ("Histograms", "Figures", "Samples")
    return {name: node for name, node in config.callbacks.items() if not str(node["_target_"]).endswith(drawing)}


def _numbers(losses: Sequence[float]) -> str:
    return "/".join(f"{loss:.3f}" for loss in losses)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
