"""Figures and the HTML report. Reads run directories; imports neither Lightning nor Hydra.

Read in this order: run, canvas, figures, section, command, story, sweep, atlas, page, summary.
"""
