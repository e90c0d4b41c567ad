"""What can be set.

In reading order: schema (every setting, and resolve(), which checks them), choices (the names that settings choose
from), ranges and memory (what numbers they may have), settings_without_effect, stored_config (that of a run, read from
its directory).
"""

from makemore_pl.config.schema import Config, DataConfig, ModelConfig, OptimConfig, TrainerConfig, resolve

__all__ = ["Config", "DataConfig", "ModelConfig", "OptimConfig", "TrainerConfig", "resolve"]
