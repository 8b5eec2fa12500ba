"""What a run leaves to be read: events of each rank, its heartbeat, the first failure. torch only on GPUs, late."""
