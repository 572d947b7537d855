"""Patients who do not exist, drawn."""
