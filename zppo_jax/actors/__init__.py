"""The student and the teacher, which answer prompts: each is a sampler with a processor and a scorer."""
