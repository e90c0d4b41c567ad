"""The doctor: rules that say what is wrong with a training, why, and what to change.

Knows neither Lightning nor the rest of the project. Read in this order: finding, evidence, facts, rule, then the rules
by phase (start, forward, backward, updates, normalisation, outcome), diagnosis, prescribing, verifying; for what it
looks at inspection, mixed_examples, loss_graph and target_statistics, for runs that are over recorded_run, for words
plain_words and handbook.
"""
