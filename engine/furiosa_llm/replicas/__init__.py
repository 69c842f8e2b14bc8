"""Data-parallel replicas: processes that each run an engine core, and what keeps them supplied."""
