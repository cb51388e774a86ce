"""A teacher asked once: what objectives need of it, written for every sample and read instead of asking again."""
