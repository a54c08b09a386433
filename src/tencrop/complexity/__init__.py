"""What a network costs, layer by layer, in the terms of its paper; the papers' tables beside ours. See count.py."""
