"""Prompts from files, and answers to Parquet."""
