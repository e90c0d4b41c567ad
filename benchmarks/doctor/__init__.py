"""How often the doctor is right, on trainings whose harm is measured, in a half that no bound was tuned on.

Read in this order: case, configurations, recipe, module_faults, learner, tuning_modules, tuning_strangers and
tuning_data (reporting_* for the other half), fitting, harm, records, counting, page; rivals for other tools on the same
modules.
"""
