"""What one types after `scripts/train.py`: for a run again, of a config, with changes."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from makemore_pl.command_line import typed
from makemore_pl.report.run_directory import Run, flatten, working_directory

NOT_SETTINGS = ("callbacks", "logger", "run_dir", "ckpt_path", "experiment")
SHOWN_ONLY = ("trainer.enable_progress_bar", "report")
"""Settings of how a run is shown; a job of a sweep has its own."""


def differences(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value, default) where the two differ; callbacks, loggers and places left out."""
    ours, theirs = ({k: v for k, v in each.items() if k not in NOT_SETTINGS} for each in (config, defaults))
    flat, default = flatten(ours), flatten(theirs)
    return {
        key: (value, default.get(key))
        for key, value in flat.items()
        if value != default.get(key) and key not in SHOWN_ONLY
    }


def overrides(config: Mapping[str, Any], start: Mapping[str, Any]) -> list[str]:
    """What makes `config` of `start`; callbacks and loggers too, where `start` has some to begin with."""
    settings = [f"{key}={typed(value)}" for key, (value, _) in differences(config, start).items()]
    for group in ("callbacks", "logger"):
        if not start.get(group):
            continue  # the bare schema, which says nothing of conf/
        ours, theirs = (_placed(each.get(group) or {}, str(each.get("run_dir") or "")) for each in (config, start))
        settings += _group(group, ours, theirs)
    return settings


def command_of(run: Run, start: Mapping[str, Any] | None = None) -> list[str] | None:
    """What runs a run again, from whatever directory; None where that is not known.

    Args:
        start: what its experiment alone, or nothing at all, composes to.
    """
    command = run.overrides
    if command is None:
        if start is None:
            return None
        command = [] if run.name == "default" else [f"+experiment={typed(run.name)}"]
        if (run.directory.parent / "multirun.yaml").is_file():
            command.append("hydra.mode=RUN")  # the experiment may be a sweep, of which this is one job
        command += overrides(run.config, start)
    return placed(command, [run])


def placed(command: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """With the files of words that these runs have read by their whole paths."""
    paths = {str(run.get("data.path")): _whole(run) for run in runs if run.get("data.path")}
    found = f"data.path={','.join(map(typed, paths.values()))}"
    return [found if paths and each.lstrip("+").startswith("data.path=") else each for each in command]


def _whole(run: Run) -> str:
    here = working_directory(run.directory)
    return os.path.abspath(here / run.get("data.path")) if here else str(run.get("data.path"))


def applied(command: Iterable[str], changes: Iterable[str]) -> list[str]:
    """The overrides with changes in place of those for the same key; of two changes for one key the first."""
    new: dict[str, str] = {}
    for change in changes:
        new.setdefault(change.partition("=")[0], change)
    return [*(each for each in command if each.lstrip("+").partition("=")[0] not in new), *new.values()]


def _group(group: str, ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    if theirs and not ours:
        return [f"{group}=none"]
    found = [f"~{group}.{name}" for name in theirs if name not in ours]
    for name, node in ours.items():
        if name not in theirs:
            found.append(f"+{group}.{name}={_typed(node)}")
            continue
        flat, start = flatten(node), flatten(theirs[name])
        found += [f"~{group}.{name}.{key}" for key in start if key not in flat]
        for key, value in flat.items():
            if key not in start or value != start[key]:
                found.append(f"{'' if key in start else '+'}{group}.{name}.{key}={_typed(value)}")
    return found


def _placed(value: Any, run_dir: str) -> Any:
    """With ${run_dir} for the directory of the run."""
    if isinstance(value, dict):
        return {key: _placed(each, run_dir) for key, each in value.items()}
    if isinstance(value, list):
        return [_placed(each, run_dir) for each in value]
    return value.replace(run_dir, "${run_dir}") if isinstance(value, str) and run_dir else value


def _typed(placed: Any) -> str:
    # of what _placed returns only its own interpolation is one
    return typed(placed).replace(r"\${run_dir}", "${run_dir}")
