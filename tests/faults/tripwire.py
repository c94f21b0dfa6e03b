"""A module that nothing may import because a damaged file names it: see `damage.py`."""
