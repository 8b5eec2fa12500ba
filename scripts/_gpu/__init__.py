"""What one GPU can be asked: the items of `scripts/gpu_campaign`, its page, and the constants that follow."""
