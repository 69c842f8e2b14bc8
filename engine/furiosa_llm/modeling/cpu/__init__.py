"""Layers and attention on a CPU: fused modules, and the kernels that numba compiles for them."""
