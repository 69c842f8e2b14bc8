"""A folder with a model and the options it is loaded with; see `read_artifact`."""
