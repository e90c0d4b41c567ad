"""Functions from numbers to a matplotlib Figure. Diagnostics, report and lecture page use the same ones.

Read in this order: series, fonts, canvas, curves, film, lecture_pictures, comparisons.
"""
