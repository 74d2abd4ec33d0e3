"""The log, segments, checkpoints and recovery of a shard copy: the only code that touches their rows and files."""
