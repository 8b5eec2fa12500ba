"""What a run writes while it works: events of each rank, heartbeats, samples of each node, the first failure."""
