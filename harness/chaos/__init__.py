"""Faults made on purpose: every promise the harness makes about interruption, kept or broken with a figure.

`rows/` has one file per row of the table; `table` finds and plays them; `workers` gives them ranks.
"""
