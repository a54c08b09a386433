"""Trained networks for use outside this framework: weights or a program, a model card and timm's config.json."""
