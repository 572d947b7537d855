"""Datalists: made from files, read, split, and what each stage wrote down about them."""
