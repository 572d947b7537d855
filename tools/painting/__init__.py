"""Painting synthetic cases for a fold."""
