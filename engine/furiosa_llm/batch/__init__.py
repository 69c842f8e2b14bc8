"""A batch: what it is asked to do, its run from rows to answers, and what it tells of itself."""
