"""Recall as a promise: samples of real queries, measures of what indexes find, and wishes for new ones."""
