"""Many optimizer steps between two that somebody looks at.

Read in this order: watched_steps, pure_step, optimizers, unwatched_steps, pinned, compiling, package_cache, recording,
finiteness. torch_internals holds every name of torch that comes without a promise.
"""
