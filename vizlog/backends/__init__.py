"""Destinations: one file each, with `write` and `close`."""
