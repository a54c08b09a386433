"""Pictures of networks: how they are built, what they cost, what they see. `python -m tencrop.visualization --help`."""
