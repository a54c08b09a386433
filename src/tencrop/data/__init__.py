"""The data pipeline: from image files on disk to batches of uint8 images on the device."""
