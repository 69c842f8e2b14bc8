"""Which request computes which tokens in which step, and where their keys and values lie."""
