"""Functions from numbers to a matplotlib Figure, for diagnostics, report and lecture page alike.

Read in this order: series, fonts, canvas, curves, film, lecture_pictures, comparisons.
"""
