"""Training: the Lightning module, optimizers, schedules, checkpoints and metrics."""
