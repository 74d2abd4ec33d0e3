"""The in-memory engine: pure numpy, knows neither Django nor files nor other nodes."""
