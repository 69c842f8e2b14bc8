"""Measures the engine: the same work several times over, and how much the runs differ."""
