"""The papers' printed error tables (conf/errors) as data, and their comparison with our results."""
