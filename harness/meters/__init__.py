"""Meters: what a step will cost, and what it did cost, one unit a file."""
