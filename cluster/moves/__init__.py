"""Moves of slots from shard to shard: asked for, planned, run, resumed and undone."""
