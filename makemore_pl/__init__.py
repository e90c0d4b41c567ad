"""The third makemore lecture as an experiment project.

Read in this order: config, words, data, initialization, model, module, stride, diagnostics, doctor, running, train; for
sweeps then sweep, for pages figures and report, for names sample, for verdicts on a configuration checkup.
"""
