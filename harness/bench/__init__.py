"""Throughput: what a step of each arm takes here, where its time goes, and how other tools fare beside it."""
