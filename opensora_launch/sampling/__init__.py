"""From noise to latents: timesteps, noise, conditions and the denoising loop. This room knows nothing about ranks."""
