"""Many optimizer steps between two that somebody looks at.

Read in this order: watched_steps, pure_step, optimizers, unwatched_steps, compiling, finiteness.
"""
