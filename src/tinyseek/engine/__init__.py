"""Running a model: the cache, sampling, and generation for one prompt or many."""
