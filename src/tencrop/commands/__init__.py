"""The commands prepare, train, evaluate and report. The scripts at the repository's root call them.

Each reads like a table of contents: it checks everything it can before it imports torch, then calls one function per
step.
"""
