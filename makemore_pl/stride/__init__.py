"""Runs many optimizer steps between two watched ones, fast.

Read in this order: watched_steps, pure_step, optimizers, unwatched_steps, pinned, compiling, package_cache, recording,
finiteness. torch_internals has all private names of torch that this room uses.
"""
