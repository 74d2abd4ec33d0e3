"""What `manage.py bench` measures, and the load generator that it measures with."""
