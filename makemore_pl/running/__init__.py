"""What a run does around its training.

In reading order: accelerator (CPU or GPU), execution (which steps are watched, and how the others run), run_lock (only
one process writes into a directory), announcement (what is printed at the start and at the end), output (how it is
printed), pins (addresses of TensorBoard), progress (the progress bar), signals and interruption (how a run ends early),
hopeless (stops bad jobs of a sweep), ending (the final losses).
"""
