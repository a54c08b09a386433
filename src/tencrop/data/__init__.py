"""From files on disk to batches of uint8 images: which sample when, which crop of it, and its pixels."""
