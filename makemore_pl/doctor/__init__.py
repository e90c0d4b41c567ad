"""The doctor: rules that say what is wrong with a training, why, and what to change.

It imports neither Lightning nor the rest of the project. Read in this order: finding, evidence, facts, rule,
update_ratios; the rules by phase (start, forward, backward, updates, normalisation, outcome, regularization);
diagnosis, prescribing, verifying; minibatch, linear_rows, inspection, copied_units, mixed_examples, loss_graph,
activation_graph, target_statistics (which gather facts); recorded_run (reads a run that is over); plain_words and
handbook (write sentences).
"""
