"""Measurements, on a GPU and without one."""
