"""One page with the verdict, the figures and the pictures."""
