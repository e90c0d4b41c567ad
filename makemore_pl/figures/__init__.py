"""Functions from numbers to a matplotlib Figure. Diagnostics, report and lecture page use the same ones.

Read in this order: series, layer_names, fonts, canvas, encoding, curves, film, lecture_pictures, comparisons.
"""
