"""Instruments for any LightningModule: what its activations, gradients, updates and BatchNorms do while it trains.

Read in this order: statistics, unit_axis, tag_names, taps (torch only); watch, callback (when and how one looks);
activation_stats, gradient_stats, update, update_stats, batchnorm_stats, histograms, pictures (what one sees);
gathering, doctor_callback (what the doctor needs); for loggers dashboard, tensorboard and jsonl; host and offers (what
others bring along). For users: docs/diagnostics.md.
"""

from makemore_pl.diagnostics.activation_stats import ActivationStats
from makemore_pl.diagnostics.batchnorm_stats import BatchNormStats
from makemore_pl.diagnostics.doctor_callback import Doctor
from makemore_pl.diagnostics.gradient_stats import GradientStats
from makemore_pl.diagnostics.histograms import Histograms
from makemore_pl.diagnostics.pictures import Figures
from makemore_pl.diagnostics.update_stats import UpdateStats

__all__ = ["ActivationStats", "BatchNormStats", "Doctor", "Figures", "GradientStats", "Histograms", "UpdateStats"]
