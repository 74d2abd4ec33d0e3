"""What a coordinator does with a request: which shards it asks, how answers become one, what became of a write."""
