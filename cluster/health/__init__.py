"""Watching the replicas: probes by beat, a failure detector, and what a probe's answer gives cause for."""
