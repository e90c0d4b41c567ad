"""The settings of a run.

In reading order: schema (every setting, and resolve(), which checks them), choices (the names that a setting can have),
ranges and memory (the numbers that a setting can have), settings_without_effect, stored_config (reads the config of a
run from its directory).
"""

from makemore_pl.config.schema import Config, DataConfig, ModelConfig, OptimConfig, TrainerConfig, resolve

__all__ = ["Config", "DataConfig", "ModelConfig", "OptimConfig", "TrainerConfig", "resolve"]
