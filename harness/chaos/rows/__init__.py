"""One file per row of the fault table, named row_NN_name.py.

Each has NUMBER, FAULT, PASSES_WHEN and `run(seed, short, folder) -> Outcome`. `short` plays the same fault fewer
times. Everything is written below `folder`, which exists and is empty.
"""
