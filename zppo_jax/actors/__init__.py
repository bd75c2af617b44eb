"""Models in this process that answer prompts: each is a sampler with a processor and a scorer."""
