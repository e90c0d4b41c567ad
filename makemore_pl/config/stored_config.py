"""The config of a run, read from its directory."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from makemore_pl.command_line import literal
from makemore_pl.config import Config, resolve


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
        content = _literal(OmegaConf.to_container(OmegaConf.load(path), resolve=False))
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path} can't be read: it is not the YAML of a config ({type(error).__name__}).") from None
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} can't be read: it is not the YAML of a config.")
    merged = OmegaConf.merge(OmegaConf.structured(Config), content)
    assert isinstance(merged, DictConfig)
    return resolve(merged)
