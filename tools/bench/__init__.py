"""Speed and accuracy beside other programs."""
