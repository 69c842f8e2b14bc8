"""Runs a step: its tensors, its forward pass, its new tokens."""
