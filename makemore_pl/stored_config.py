"""The config of a run, read from its directory."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from makemore_pl.command_line import literal
from makemore_pl.config import Config, resolve


def _literal(value: Any) -> Any:
    """With every interpolation escaped in OmegaConf's way."""
    if isinstance(value, dict):
        return {key: _literal(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_literal(each) for each in value]
    return literal(value) if isinstance(value, str) else value


def load_config(run_dir: Path) -> Config:
    """The resolved config of a run. Nothing in it is resolved again: `${oc.env:HOME}` stays these words.

    Raises:
        ValueError: where there is none, or it does not fit the schema.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run_dir} is not a run directory: it has no config.yaml.")
    try:
        loaded = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise ValueError(f"{path} can't be read: it is not YAML ({type(error).__name__}).") from error
    if not isinstance(loaded, DictConfig):
        raise ValueError(f"{path} can't be read: it holds no keys.")
    settings = _literal(OmegaConf.to_container(loaded, resolve=False))
    merged = OmegaConf.merge(OmegaConf.structured(Config), settings)
    assert isinstance(merged, DictConfig)
    return resolve(merged)
