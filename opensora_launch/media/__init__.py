"""Prompts, reference images and videos in; videos and images out."""
