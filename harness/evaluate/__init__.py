"""What a student is worth: held-out MLM, a read-out of the frozen body, and built-in probes."""
