"""Examines a machine, or the nodes of a SLURM job, before the first training: doctor.py prints what is found.

`examine.py` runs the checks. In each other module a `measure` or `read` function collects facts, and a `judge` function
turns them into findings. The judging functions are pure, so that tests can plant every condition.
"""
