"""A study as jobs of a cluster: which stages it needs, how runs are packed onto nodes, and who executes them."""
