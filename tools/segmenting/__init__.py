"""A real CT in, its tissues out: one command for who has no training set."""
