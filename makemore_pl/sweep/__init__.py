"""Sweeps: the names of their directories, one job, the launch of all jobs, and the summary.

Read in this order: directory_names, job, tally, launch, stopping, conclusion, hydra_callback, gpu.
"""
