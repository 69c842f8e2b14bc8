"""Layers and attention on a GPU: joined and quantised products, and Triton kernels between them."""
