"""What changes the registry, placements and moves: each in one transaction with its event and marker."""
