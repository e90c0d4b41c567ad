"""The config of a run, read from its directory."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from makemore_pl.command_line import literal
from makemore_pl.config import Config, resolve
from makemore_pl.config.schema import unknown_key
from makemore_pl.stored_files import read_config


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
        ValueError: config.yaml is missing, can't be read, or does not fit the schema; the message names the key.
    """
    path, content = run_dir / "config.yaml", read_config(run_dir)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), _literal(content))
        assert isinstance(merged, DictConfig)
        return resolve(merged)
    except (ValueError, OmegaConfBaseException) as error:
        key, first_line = getattr(error, "full_key", None), str(error).partition("\n")[0]
        if key:
            first_line = unknown_key(key) if isinstance(error, ConfigKeyError) else f"{key}: {first_line}"
        raise ValueError(
            f"{path} can't be read: {first_line.rstrip('.')}{'' if first_line.endswith('?') else '.'}"
        ) from None
