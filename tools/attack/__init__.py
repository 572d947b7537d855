"""Hostile files: mutated NIfTI and DICOM inputs through the commands that read CTs, and what became of them."""
