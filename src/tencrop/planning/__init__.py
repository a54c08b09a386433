"""Expected speed of a training on many GPUs, from measurements on one: `python -m tencrop.planning`."""
