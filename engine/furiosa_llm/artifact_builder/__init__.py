"""Makes an artifact out of a checkpoint; see `build_artifact`."""
