"""The parts of `replication_sharding_example.py`, and what they have in common."""
