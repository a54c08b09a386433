"""Records of a run: its folder, provenance and experiment tracker, and how to reproduce it."""
