"""Before a sweep starts: where it and its jobs lie, and a refusal where a directory holds another config."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from makemore_pl.command_line import typed
from makemore_pl.config import Config, resolve
from makemore_pl.errors import USERS_MISTAKES, explain
from makemore_pl.files import remove_parts
from makemore_pl.sweep.directory_names import job_name, sweep_name
from makemore_pl.sweep.job import ALONE, COMMAND, METRICS, refuse_other_run
from makemore_pl.sweep.stopping import set_up_worker, stop_on_signals
from makemore_pl.sweep.tally import Sweep

OmegaConf.register_new_resolver(
    "job_name", lambda overrides, varied: job_name(list(overrides), varied.split("|") if varied else []), replace=True
)

OmegaConf.register_new_resolver("gpus_of", lambda accelerator: int(accelerator == "gpu"), replace=True)
SET_UP_WORKERS = {
    "_target_": "hydra.utils.get_method",
    "path": f"{set_up_worker.__module__}.{set_up_worker.__name__}",
}


class SweepCallback(Callback):
    """Names the sweep's directory and its jobs' before the sweeper starts."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            self._set_up(config)
        except USERS_MISTAKES as error:
            sys.exit(f"error: {explain(error)}")  # Hydra makes a warning of any other exception here

    def _set_up(self, config: DictConfig) -> None:
        params = _parse([f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()])
        given = _parse(config.hydra.overrides.task)
        choices = {key: list(_values(each)) for key, each in (params | given).items()}
        varied = [key.lstrip("+") for key, each in (params | given).items() if each.is_sweep_override()]
        named_by = varied or [key.lstrip("+") for key in choices]  # one job, of -m with single values
        _refuse_nested_sweeps(config, choices.get("+experiment", []))
        combinations = [
            [f"{key}={value}" for key, value in zip(choices, values, strict=True)]
            for values in itertools.product(*choices.values())
        ]
        jobs = [job_name(each, named_by) for each in combinations]
        fixed = {key.lstrip("+"): choices[key][0] for key, each in given.items() if not each.is_sweep_override()}
        default = f"outputs/sweeps/{sweep_name(fixed, [key for key in varied if key not in params])}"
        overrides = config.hydra.overrides.hydra
        chosen = any(str(override).startswith("hydra.sweep.dir=") for override in overrides)
        # absolute: a job may run in another working directory
        directory = Path(config.hydra.sweep.dir if chosen else default).absolute()
        again = Sweep.current is not None
        if not again:
            Sweep.current = Sweep(
                directory, dict(zip(jobs, (_alone(each, bool(params)) for each in combinations), strict=True))
            )
            stop_on_signals(Sweep.current.stop, partial(Sweep.current.begun, running=True))
        sweep = Sweep.current
        assert sweep
        with open_dict(config):
            config.hydra.sweep.dir = str(directory)
            overrides.append(f"hydra.sweep.dir={typed(str(directory))}")
            overrides.append(f"hydra.sweep.subdir='${{job_name:${{hydra.overrides.task}},\"{'|'.join(named_by)}\"}}'")
            overrides.append("hydra.output_subdir=null")  # Hydra would write into finished jobs
            overrides.append("hydra.job_logging.root.handlers=[file]")
            overrides.append(f"+hydra.job.env_set.{COMMAND}={sweep.command}")
            if sweep.alone:
                overrides.append(f"+hydra.job.env_set.{ALONE}='{'|'.join(sweep.alone)}'")
                config.hydra.sweeper.max_batch_size = 1
            if "batch_size" in config.hydra.launcher:
                config.hydra.launcher.batch_size = 1  # joblib puts jobs after quickly skipped ones into one batch
                with open_dict(config.hydra.launcher):
                    config.hydra.launcher.initializer = SET_UP_WORKERS
        if not again:
            for job, each in zip(jobs, combinations, strict=True):
                _refuse_other_run(config, directory / job, each)
            for place in (directory, *(directory / job for job in jobs)):
                remove_parts(place)


def _alone(overrides: Sequence[str], from_file: bool) -> list[str]:
    """What runs one job as a plain run; where its experiment is a sweep, that has to be said."""
    typed = [each.removesuffix("=null") if each.startswith("~") else each for each in overrides]
    return [*typed, "hydra.mode=RUN"] if from_file else typed


def _refuse_other_run(config: DictConfig, directory: Path, overrides: list[str]) -> None:
    """Now, before any job runs: what a job raises is told only after all of them."""
    if not (directory / "config.yaml").exists():
        return
    try:
        composed = _compose(config, directory, overrides)
    except USERS_MISTAKES:
        if (directory / METRICS).exists():
            raise
        return  # a failure of this job, which it will tell
    refuse_other_run(directory, composed)


def _compose(config: DictConfig, directory: Path, overrides: list[str]) -> Config:
    """The config of one job, composed as Hydra's launchers do."""
    raw = GlobalHydra.instance().config_loader().load_sweep_config(config, overrides)
    with read_write(raw), open_dict(raw):
        raw.hydra.runtime.output_dir = str(directory)
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(raw)  # for ${hydra:...}
    try:
        with read_write(raw), open_dict(raw):
            del raw["hydra"]
        return resolve(raw)
    finally:
        HydraConfig.instance().cfg = before


def _parse(overrides: Sequence[str]) -> dict[str, Override]:
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    return {each.get_key_element(): each for each in parser.parse_overrides(list(overrides))}


def _values(override: Override) -> Iterator[str]:
    if not override.is_sweep_override():
        yield override.get_value_element_as_str()
    elif override.is_discrete_sweep():
        yield from override.sweep_string_iterator()
    else:
        raise ValueError(f"{override.input_line}: name the values to sweep over, such as 0.5,1,2 or range(1,4).")


def _refuse_nested_sweeps(config: DictConfig, experiments: Sequence[str]) -> None:
    loader = GlobalHydra.instance().config_loader()
    for experiment in experiments if len(experiments) > 1 else ():
        if loader.load_sweep_config(config, [f"+experiment={experiment}"]).hydra.sweeper.params:
            raise ValueError(
                f"+experiment={experiment} is a sweep of its own, and Hydra would ignore what it varies here: "
                "run such files one after another."
            )
