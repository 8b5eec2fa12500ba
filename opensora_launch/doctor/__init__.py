"""Check this machine: environment, memory, disks, GPUs and builds, and measure the links with test ranks."""
