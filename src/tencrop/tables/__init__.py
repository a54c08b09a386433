"""Printed error tables of papers (conf/errors) beside our results. Called by report.py."""
