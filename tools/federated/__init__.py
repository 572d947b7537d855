"""Several hospitals, one network."""
