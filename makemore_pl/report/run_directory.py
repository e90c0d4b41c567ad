"""Reads a run directory. The run may be unfinished, and it may have no diagnostics."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from makemore_pl.diagnostics_file import KINDS, Diagnostics, read_diagnostics
from makemore_pl.figures.series import Floats
from makemore_pl.stored_files import read_archive, read_config, read_json, read_yaml
from makemore_pl.stored_form import TEXT, at, refuse_misfit


@dataclass(slots=True)
class Run:
    """One run. `metrics` is empty while it is not finished."""

    directory: Path
    config: dict[str, Any]
    metrics: dict[str, Any]
    diagnostics: Diagnostics
    overrides: list[str] | None
    """What was typed after `scripts/train.py`; None if Hydra did not keep it."""
    findings: list[dict[str, Any]]
    """What the doctor found, from findings.json."""
    diagnosis: dict[str, Any] = field(default_factory=dict)
    """All of findings.json; empty if the run had no doctor."""
    job: str = ""
    """A label that differs from those of the runs it was read with: the path of its folder below their common one."""

    @property
    def name(self) -> str:
        return str(self.config.get("experiment", self.directory.name))

    @property
    def finding(self) -> str:
        """The id of the doctor's first finding above info that no other one explains; empty if there is none."""
        return next(iter(self.roots), "")

    @property
    def roots(self) -> list[str]:
        """The ids of all such findings, without repetitions."""
        found = (
            finding for finding in self.findings if finding.get("severity") != "info" and not finding.get("because_of")
        )
        return list(dict.fromkeys(str(each.get("id", "")) for each in found))

    def get(self, key: str) -> Any:
        """The value of a dotted config key; None if the config lacks it."""
        return at(self.config, key)


def is_run(directory: Path) -> bool:
    return (directory / "config.yaml").is_file()


def read_run(directory: Path, kinds: Collection[str] = KINDS) -> Run:
    """Read a run directory.

    Args:
        kinds: which kinds of lines of diagnostics.jsonl to read.

    Raises:
        ValueError: it is no run directory, or a file in it can't be read.
    """
    diagnosis = read_json(directory / "findings.json")
    return Run(
        directory,
        read_config(directory),
        read_json(directory / "metrics.json"),
        read_diagnostics(directory / "diagnostics.jsonl", kinds),
        read_overrides(directory),
        diagnosis.get("findings", []),
        diagnosis,
    )


def read_overrides(directory: Path) -> list[str] | None:
    """The overrides that Hydra kept, without those that only name a directory or file; None if it kept none."""
    path = directory / ".hydra" / "overrides.yaml"
    if not path.is_file():
        return None
    elsewhere, typed = ("hydra.", "run_dir=", "ckpt_path="), read_yaml(path, list)
    try:
        refuse_misfit(typed, [TEXT])
    except ValueError as error:
        raise ValueError(f"{path} can't be read: {error}.") from None
    return [override for override in typed if not override.lstrip("+~").startswith(elsewhere)]


def working_directory(directory: Path) -> Path | None:
    """The directory in which the command of a run, or of its sweep, was typed; None if Hydra did not keep it."""
    for path in (directory / ".hydra" / "hydra.yaml", directory.parent / "multirun.yaml"):
        if path.is_file():
            place = at(read_yaml(path, dict), "hydra.runtime.cwd")
            return Path(place) if isinstance(place, str) else None
    return None


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config -> dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def recorded(runs: Iterable[Run]) -> list[list[str]]:
    """Commit and versions that the runs have recorded, as rows of name and value; all values if runs differ."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        facts = {"commit": run.metrics.get("commit")} | (run.metrics.get("versions") or {})
        for name, value in facts.items():
            if value is not None:
                found.setdefault(name, {})[str(value)] = None
    return [[name, ", ".join(values)] for name, values in found.items()]


def read_embedding(directory: Path) -> tuple[str, Floats]:
    """Characters, the end mark first, and their learned embeddings (V, n_embd), from the last checkpoint.

    Raises:
        ValueError: there is no checkpoint, or it is not one of this project.
    """
    path = directory / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise ValueError("There is no checkpoints/last.ckpt.")
    checkpoint = read_archive(path)
    try:
        characters = "." + checkpoint["hyper_parameters"]["vocabulary"]
        embedding = checkpoint["state_dict"]["model.embedding.weight"].double().numpy()
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(f"checkpoints/last.ckpt can't be read ({type(error).__name__}).") from error
    if len(characters) != len(embedding):
        raise ValueError(f"checkpoints/last.ckpt has {len(embedding)} embeddings for {len(characters)} characters.")
    return characters, embedding
