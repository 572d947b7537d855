"""Disk and geometry: files, volumes, DICOM series."""
