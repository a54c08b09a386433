"""Cost of a network, layer by layer: parameters, multiply-adds, receptive fields; published tables beside ours."""
