"""The doctor: rules that say what is wrong with a training, why, and what to change.

Knows neither Lightning nor the rest of the project. Read in this order: finding, evidence, facts, rule, then the rules
by phase (start, forward, backward, update, batchnorm, outcome), diagnosis, prescribing; for what it looks at
module_facts and loss_graph, for runs that are over recorded_run.
"""
