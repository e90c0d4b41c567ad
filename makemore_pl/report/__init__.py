"""The HTML report. It reads run directories, and imports neither Lightning nor Hydra.

Read in this order: run_directory, section, wording, command; for a run evolution, health, verdict, run_story; for a
sweep sweep_directory, heat_map_grid, job_page, sweep_results, sweep_story; for two runs pair_story; then page and
summary.
"""
