"""What this host is: GPUs by NVML, CPUs, memory, processes, and which GPUs a run takes."""
