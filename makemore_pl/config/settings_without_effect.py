"""Settings that have no effect because of other settings: a run names them instead of ignoring them silently."""

from makemore_pl.config import Config, OptimConfig
from makemore_pl.config.choices import OPTIMIZER_SETTINGS


def settings_without_effect(config: Config) -> list[str]:
    """One sentence for each setting that was changed but has no effect."""
    model, optim, trainer = config.model, config.optim, config.trainer
    without_effect = {
        "model.hidden_bias: a Linear directly before BatchNorm has no bias": model.batchnorm_at("pre")
        and model.hidden_bias,
        "model.output_bias: a Linear directly before BatchNorm has no bias": model.batchnorm_at("output")
        and model.output_bias,
        "model.bn_momentum: there is no BatchNorm": model.batchnorm == "none" and model.bn_momentum != 0.1,
        "model.bn_eps: there is no BatchNorm": model.batchnorm == "none" and model.bn_eps != 1e-5,
        "optim.decay_at: only optim.schedule=step_decay uses it": optim.schedule != "step_decay"
        and optim.decay_at != 0.5,
        "optim.decay_factor: optim.schedule=constant does not decay": optim.schedule == "constant"
        and optim.decay_factor != 0.1,
        **{
            f"optim.{setting}: {optim.name} does not use it": getattr(optim, setting) != getattr(OptimConfig(), setting)
            for setting in sorted({setting for settings in OPTIMIZER_SETTINGS.values() for setting in settings})
            if setting not in OPTIMIZER_SETTINGS[optim.name]
        },
        "trainer.gradient_clip_algorithm: nothing is clipped without trainer.gradient_clip_val": not (
            trainer.gradient_clip_val
        )
        and trainer.gradient_clip_algorithm != "norm",
        "trainer.engine: with trainer.watch_every=1 no step is unwatched": trainer.watch_every == 1
        and trainer.engine != "auto",
        "doctor.stop_on_critical: only a job of a sweep has others to be compared with": config.doctor.stop_on_critical
        and "stop_on_critical" not in config.callbacks,
    }
    return [f"Without effect: {sentence}." for sentence, holds in without_effect.items() if holds]
