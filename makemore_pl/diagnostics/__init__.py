"""Instruments for any LightningModule: they measure its activations, gradients, updates and BatchNorms in training.

Read in this order: statistics, unit_axis, tag_names, taps (these need torch only); watch, callback (when and how a
callback measures); activation_stats, gradient_stats, update, update_stats, batchnorm_stats, histograms, pictures (what
is measured); first_batches, loss_record, validation_loss, function_record, gathering, packed_series, history,
doctor_callback (for the doctor); dashboard,
tensorboard, jsonl (for loggers); host, offers (which Lightning there is, and what a module can offer). The page for
users is docs/diagnostics.md.
"""

from makemore_pl.diagnostics.activation_stats import ActivationStats
from makemore_pl.diagnostics.batchnorm_stats import BatchNormStats
from makemore_pl.diagnostics.doctor_callback import Doctor
from makemore_pl.diagnostics.gradient_stats import GradientStats
from makemore_pl.diagnostics.histograms import Histograms
from makemore_pl.diagnostics.pictures import Figures
from makemore_pl.diagnostics.update_stats import UpdateStats

__all__ = ["ActivationStats", "BatchNormStats", "Doctor", "Figures", "GradientStats", "Histograms", "UpdateStats"]
