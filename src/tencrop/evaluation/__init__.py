"""Evaluation: views of an image, scores of every image exactly once, errors with intervals, ensembles."""
