"""Real data that ships with the project, small enough to be loaded by the demonstration and the tests."""

from vectors.datasets.digits import Digits, load_digits

__all__ = ["Digits", "load_digits"]
