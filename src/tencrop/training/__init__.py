"""Training: the Lightning module and what it is made of. Called by train.py."""
