"""New tissue maps: lesions moved and deformed, or drawn by a model of their shapes."""
