"""The four verbs, each a table of contents: prepare, train, evaluate, report. Scripts of their names call them."""
