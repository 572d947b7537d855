"""The chain around the two bundles: phantom, dataset, augment, compare, report, demo."""
