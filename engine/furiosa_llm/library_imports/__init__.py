"""How torch, transformers and what they bring along are loaded: late, quickly, or not at all."""
