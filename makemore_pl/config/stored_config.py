"""The config of a run, read from its directory."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ValidationError

from makemore_pl.command_line import literal
from makemore_pl.config import Config, resolve
from makemore_pl.stored_files import read_yaml


def _literal(value: Any) -> Any:
    """The value with every interpolation in its texts escaped."""
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return literal(value) if isinstance(value, str) else value


def load_config(run_dir: Path) -> Config:
    """The config of a run, as the run resolved it. A text such as `${oc.env:HOME}` is not interpolated again.

    Raises:
        ValueError: config.yaml is missing, can't be read, or does not fit the schema.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run_dir} is not a run directory: it has no config.yaml.")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), _literal(read_yaml(path, dict)))
    except ValidationError as error:
        if error.full_key:
            raise
        raise ValueError(f"{path} can't be read: {str(error).partition(chr(10))[0]}.") from error
    assert isinstance(merged, DictConfig)
    return resolve(merged)
