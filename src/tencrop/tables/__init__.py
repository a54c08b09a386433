"""Printed error tables of papers (conf/errors), and how ours stand beside them. Called by report/."""
