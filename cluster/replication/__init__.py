"""Copying: placements, shipping of the log, full sync, votes and promotion."""
