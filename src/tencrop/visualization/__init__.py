"""Figures of networks: architecture, cost, receptive fields, saliency. `python -m tencrop.visualization --help`."""
