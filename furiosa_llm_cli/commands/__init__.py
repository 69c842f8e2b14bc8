"""The commands of `furiosa-llm`, one module each."""
