"""What a run does around its training.

In reading order: accelerator (CPU or GPU), execution (which steps are watched, and how the others run), run_lock (one
process a directory), announcement (its words at the start and at the end), output and pins (how it prints them, and the
addresses in them), progress (the bar), signals and interruption (how it ends early), hopeless (jobs that a sweep gives
up), ending (losses).
"""
