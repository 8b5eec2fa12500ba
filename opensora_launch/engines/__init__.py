"""How the transformer's blocks run on the ranks: our own engine, and ColossalAI's."""
