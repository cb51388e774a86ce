"""Data: documents in, packed blocks on disk, and a sample stream that is a pure function of the step."""
