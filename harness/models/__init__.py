"""Students, teachers, what they cost, and the signals they give."""
