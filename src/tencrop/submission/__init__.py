"""Submits trainings to SLURM with a snapshot of the code, so that edits afterwards do not change a queued job."""
