"""The overrides that one types after `scripts/train.py`: to run a run again, to get a config, to change something."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from makemore_pl.command_line import typed
from makemore_pl.report.run_directory import Run, flatten, working_directory

NOT_SETTINGS = ("callbacks", "logger", "run_dir", "ckpt_path", "experiment")
SHOWN_ONLY = ("trainer.enable_progress_bar", "report")
"""Settings that change only what a run shows. They differ in the jobs of a sweep."""


def differences(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value, default) for settings that differ. Callbacks, loggers and directories are left out."""
    ours, theirs = ({k: v for k, v in settings.items() if k not in NOT_SETTINGS} for settings in (config, defaults))
    flat, default = flatten(ours), flatten(theirs)
    return {
        key: (value, default.get(key))
        for key, value in flat.items()
        if value != default.get(key) and key not in SHOWN_ONLY
    }


def overrides(config: Mapping[str, Any], start: Mapping[str, Any]) -> list[str]:
    """The overrides that turn `start` into `config`. Callbacks and loggers are included if `start` has any."""
    settings = [f"{key}={typed(value)}" for key, (value, _) in differences(config, start).items()]
    for group in ("callbacks", "logger"):
        if not start.get(group):
            continue  # `start` is only the schema, without the groups of conf/
        ours, theirs = (_placed(whole.get(group) or {}, str(whole.get("run_dir") or "")) for whole in (config, start))
        settings += _group(group, ours, theirs)
    return settings


def command_of(run: Run, start: Mapping[str, Any] | None = None) -> list[str] | None:
    """The command that runs a run again, from any directory; None if it is not known.

    Args:
        start: the config of its experiment, or the default config, without other overrides.
    """
    command = run.overrides
    if command is None:
        if start is None:
            return None
        command = [] if run.name == "default" else [f"+experiment={typed(run.name)}"]
        if (run.directory.parent / "multirun.yaml").is_file():
            command.append("hydra.mode=RUN")  # without this the command would start a sweep if the experiment is one
        command += overrides(run.config, start)
    return placed(command, [run])


def placed(command: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """The overrides with absolute paths of the files of words that these runs have read."""
    paths = {str(run.get("data.path")): _whole(run) for run in runs if run.get("data.path")}
    found = f"data.path={','.join(map(typed, paths.values()))}"
    return [found if paths and override.lstrip("+").startswith("data.path=") else override for override in command]


def _whole(run: Run) -> str:
    here = working_directory(run.directory)
    return os.path.abspath(here / os.path.expanduser(run.get("data.path"))) if here else str(run.get("data.path"))


def applied(command: Iterable[str], changes: Iterable[str]) -> list[str]:
    """The overrides, with changes in place of those for the same key; of two changes for a key the first counts."""
    new: dict[str, str] = {}
    for change in changes:
        new.setdefault(change.partition("=")[0], change)
    return [*(override for override in command if override.lstrip("+").partition("=")[0] not in new), *new.values()]


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
    """The value with ${run_dir} in place of the run's directory."""
    if isinstance(value, dict):
        return {key: _placed(part, run_dir) for key, part in value.items()}
    if isinstance(value, list):
        return [_placed(part, run_dir) for part in value]
    return value.replace(run_dir, "${run_dir}") if isinstance(value, str) and run_dir else value


def _typed(placed: Any) -> str:
    # the only interpolation in `placed` is the ${run_dir} that _placed wrote
    return typed(placed).replace(r"\${run_dir}", "${run_dir}")
