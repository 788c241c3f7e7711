"""Metrics: functions from strings and arrays to numbers."""
