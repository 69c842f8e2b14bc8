"""Offline batch inference for large language models."""
