"""Real nodes: `manage.py serve` with all its processes, killed and stopped in every way."""
