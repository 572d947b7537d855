"""The two bundles as the tools run them."""
