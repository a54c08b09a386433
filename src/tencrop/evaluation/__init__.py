"""Evaluation: test-time crops, class scores of every image exactly once, error rates with intervals, ensembles."""
