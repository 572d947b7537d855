"""What MONAI lacks for the segmenter; inference needs none of it."""
