"""Facts about this host: GPUs by NVML, CPUs, memory, processes; and the choice of the GPUs that a run takes."""
