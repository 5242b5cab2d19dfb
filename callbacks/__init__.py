"""Ways to train: one file each, and what the callbacks among them share."""
