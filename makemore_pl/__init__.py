"""The third makemore lecture as an experiment project.

Read in this order: config, data, initialization, model, module, fused, diagnostics, train.
"""
