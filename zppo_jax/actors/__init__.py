"""Who answers prompts: the student and the teacher, each a sampler with a processor and a scorer."""
