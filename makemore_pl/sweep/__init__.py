"""Sweeps: directories named after what varies, one job, the launch of all.

Read in this order: directory_names, job, tally, launch, stopping, conclusion, hydra_callback; gpu.
"""
