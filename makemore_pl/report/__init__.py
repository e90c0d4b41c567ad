"""The HTML report. It reads run directories, and imports neither Lightning nor Hydra.

Read in this order: run_directory, section, wording, command; evolution, health, verdict, run_story (the page of a run);
pair_story (of two runs); sweep_directory, heat_map_grid, sweep_results, job_page, sweep_story (of a sweep); then page
and summary.
"""
