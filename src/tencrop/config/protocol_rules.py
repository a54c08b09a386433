"""Rules for test protocols: which sides, regions, resizes and views fit together. Called by rules.py and evaluation."""

from __future__ import annotations

from tencrop.config.schema import MEAN_IMAGE_SIDE, Normalization, Protocol, UserError

# Protocols that crop an image at several positions, which must differ.
MULTI_CROP = ("five_crop", "ten_crop", "grid_crop")


def check_protocol(protocol: Protocol) -> None:
    """Raise UserError for the first rule that a protocol violates."""
    _check_sides(protocol)
    _check_resize(protocol)
    # Both take views outside the central square; cutting it out first would be another protocol of the same name.
    if protocol.name in ("crops_144", "dense") and protocol.region != "whole":
        raise UserError(
            f"protocol.region={protocol.region}: {protocol.name} covers the whole image; set protocol.region=whole"
        )
    if protocol.name == "crops_144" and protocol.side is None:
        raise UserError(
            "protocol.side=null: crops_144 needs rescaled images; give protocol.side=[256,288,320,352], as in its paper"
        )
    if protocol.name == "crops_144" and protocol.filter not in ("bilinear", "bicubic"):
        raise UserError(f"protocol.filter={protocol.filter}: crops_144 resizes on the device; use bilinear or bicubic")


def check_mean_image(protocol: Protocol, normalization: Normalization) -> None:
    """Raise UserError if a view of the protocol has no place in the mean image that normalization.mean=image subtracts.

    Caffe, too, subtracts a mean image from images of its own size only (data_transformer.cpp).
    """
    side = MEAN_IMAGE_SIDE
    if normalization.mean != "image":
        return
    # The center of an image with this shorter side is that of its central square.
    # The image itself need not be a square as long as every view of it lies within the central one.
    is_square = protocol.resize == "shorter_side" and (
        protocol.region == "square" or protocol.name in ("center", "flip_pair")
    )
    if protocol.sides != [side] or not (is_square or protocol.resize == "warp") or protocol.name == "crops_144":
        remedies = {"dense": f"set protocol.side={side} and protocol.resize=warp", "crops_144": "use protocol=ten_crop"}
        remedy = f"set protocol.side={side} and protocol.region=square, or protocol.resize=warp"
        raise UserError(
            f"normalization.mean=image: the mean image is a square of {side} pixels, and protocol={protocol.name} must"
            f" take its views from such a square; {remedies.get(protocol.name, remedy)}"
        )


def _check_sides(protocol: Protocol) -> None:
    if not protocol.sides:
        raise UserError("protocol.side=[]: names no size; give protocol.side=256, or a list of several")
    for side in protocol.sides:
        if side is not None and side < protocol.size:
            raise UserError(
                f"protocol.side={side}: a crop of {protocol.size} pixels does not fit;"
                " raise protocol.side or lower protocol.size"
            )


def _check_resize(protocol: Protocol) -> None:
    resize, name = protocol.resize, protocol.name
    if resize == "shorter_side":
        return
    # Without a side there is no size to stretch to; for shorter_side, null keeps the stored size.
    if resize == "warp" and protocol.side is None:
        raise UserError(
            "protocol.side=null: protocol.resize=warp stretches the image to a side; give protocol.side=256"
        )
    if resize == "central_fraction" and protocol.side is not None:
        raise UserError(
            f"protocol.side={protocol.side}: protocol.resize=central_fraction stretches the image to protocol.size and"
            " uses no side; set protocol.side=null"
        )
    if protocol.region != "whole":
        raise UserError(
            f"protocol.region={protocol.region}: protocol.resize={resize} stretches the whole image;"
            " set protocol.region=whole"
        )
    if name == "crops_144":
        raise UserError(
            f"protocol.resize={resize}: crops_144 takes squares along the longer side, which a stretched image does not"
            " have; set protocol.resize=shorter_side"
        )
    # All ten crops of a 224 x 224 image are the same one and its mirror image: the label would say ten views.
    stretched = protocol.sides if resize == "warp" else [protocol.size]
    if name in MULTI_CROP and protocol.size in stretched:
        raise UserError(
            f"protocol.resize={resize}: stretches the image to the size of a crop, {protocol.size} pixels, where all"
            f" crops of {name} are the same; use protocol=center or flip_pair"
        )
