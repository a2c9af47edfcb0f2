"""Measurements that need no GPU."""
