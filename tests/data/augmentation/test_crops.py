"""Central crops against torchvision's, image by image."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as T

from tencrop.data.augmentation.crops import central_crops


@pytest.mark.parametrize("shape", [(36, 36), (36, 41), (37, 36), (50, 39), (32, 32)])
def test_central_crops_equal_torchvision_center_crop(shape):
    height, width = shape
    images = torch.zeros(2, 60, 60, 3, dtype=torch.uint8)
    images[0, :height, :width] = torch.randint(1, 256, (height, width, 3), dtype=torch.uint8)
    images[1, :33, :34] = torch.randint(1, 256, (33, 34, 3), dtype=torch.uint8)
    crops = central_crops(images, np.array([shape, (33, 34)], np.int32), size=32)
    for crop, image in zip(crops, (images[0, :height, :width], images[1, :33, :34]), strict=True):
        assert torch.equal(crop.permute(2, 0, 1), T.center_crop(image.permute(2, 0, 1), [32, 32]))


def test_a_crop_larger_than_an_image_is_refused_instead_of_wrapping_around():
    images = torch.zeros(2, 60, 60, 3, dtype=torch.uint8)
    with pytest.raises(AssertionError, match="smaller than 32 pixels"):
        central_crops(images, np.array([(40, 40), (31, 40)], np.int32), size=32)
