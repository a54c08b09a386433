"""The reliability plot: a bar for each bin with images, and the same bytes for the same calibration."""

from xml.etree import ElementTree

import numpy as np

from tencrop.report.reliability import HEIGHT, WIDTH, reliability_svg
from tencrop.report.score_statistics import calibration
from typed import present

SVG = "{http://www.w3.org/2000/svg}"


def test_bars_stand_at_the_accuracy_of_their_bins():
    found = calibration(np.array([0.30, 0.31, 0.95, 0.99]), np.array([True, False, True, True]))
    content = reliability_svg(found)
    assert content == reliability_svg(found)
    svg = ElementTree.fromstring(content)
    assert svg.get("viewBox") == f"0 0 {WIDTH} {HEIGHT}"
    heights = [bar_height(svg, name) for name in ("accuracy-0", "accuracy-1")]
    assert heights[0] > 0 and abs(heights[1] / heights[0] - 2) < 1e-3, "accuracies of 0.5 and 1"
    assert bar_height(svg, "accuracy-2") == 0, "bins without images have no bar"


def bar_height(svg: ElementTree.Element, name: str) -> float:
    """Height of the path within the group of this id, in pixels; 0 without one."""
    for group in svg.iter(f"{SVG}g"):
        if group.get("id") == name:
            path = present(present(group.find(f"{SVG}path")).get("d"))
            ys = [float(word) for word in path.replace("L", "M").replace("z", "").split("M") if word.strip()
                  for word in [word.split()[1]]]  # fmt: skip
            return max(ys) - min(ys)
    return 0.0
