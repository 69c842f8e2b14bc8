"""The command `furiosa-llm`: parses options, calls the engine, shows how it went."""
