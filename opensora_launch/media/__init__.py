"""Read prompts, reference images and videos; write videos and images."""
