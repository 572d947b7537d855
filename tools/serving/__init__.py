"""Bundles as other programs take them."""
