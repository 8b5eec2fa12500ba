"""From noise to latents: timesteps, noise, conditions, and the denoising loop. Knows nothing of ranks."""
