"""Does painted tissue help? Arms, runs, leaks, statistics."""
