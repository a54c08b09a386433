"""Mean and standard deviation of ImageNet's pixels on [0, 255], R, G, B: the values of `normalization: imagenet`.

Apart from color.py so that reports, which compare a run's normalization with a result's, need not import torch.
"""

# torchvision's 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225 times 255
IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
