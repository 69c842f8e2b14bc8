"""Models of transformers, with our paged attention in place of theirs."""
