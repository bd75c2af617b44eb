"""Questions with images, and the Grain stream that turns them into the prompts of a training step."""
