"""Measurements that are run by hand and pasted into the documentation."""
