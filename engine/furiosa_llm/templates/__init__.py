"""A sandbox for Jinja templates, bounded in time and memory; see `BoundedEnvironment`."""
