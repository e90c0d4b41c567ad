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
        ValueError: where there is none that can be read, or it does not fit the schema.
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
