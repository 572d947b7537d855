"""What MONAI lacks for painting tissue: mask ablation, the flow inside a region, and the sampler over a whole CT."""
