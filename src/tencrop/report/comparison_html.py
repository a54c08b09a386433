"""comparison.html: the comparison of two runs as a page, with pictures of the images that flip.

Called by comparison_output.py for report.py compare=[A,B].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from tencrop.config import UserError
from tencrop.data.store.encode import Undecodable
from tencrop.printable import printable
from tencrop.report.blocks import Block
from tencrop.report.pictures import fixed_order, image_picture
from tencrop.report.run_comparison import Comparison
from tencrop.report.templating import render

NUM_PICTURES = 8  # of each kind; one of ImageNet takes 20 kB


def comparison_section(comparison: Comparison, *, title: str, head: str, tables: Sequence[Block]) -> Markup:
    """One pair of score files: what they are, the tables, and images that only one of the two gets wrong."""
    flips = [_flips(comparison, wrong) for wrong in ("A", "B")]
    lines = printable(head).splitlines()
    return render(
        "comparison_section.html", title=title, head=lines, tables=[one.html() for one in tables], flips=flips
    )


def comparison_page(sections: Sequence[Markup]) -> str:
    """A page of all pairs, which loads nothing, as the report's does."""
    return printable(f"{render('comparison_page.html', title='Comparison of A and B', sections=sections)}\n")


def _flips(comparison: Comparison, wrong: str) -> dict[str, Any]:
    """Heading and pictures of images that only A, or only B, gets wrong at the first k."""
    k = comparison.ks[0]
    wrong_a, wrong_b = comparison.wrong(k)
    flipped = np.flatnonzero(wrong_a & ~wrong_b if wrong == "A" else wrong_b & ~wrong_a).tolist()
    chosen = sorted(flipped, key=fixed_order)[:NUM_PICTURES]
    heading = f"Only {wrong} is wrong at top-{k}: {len(chosen)} of {len(flipped):,} images"
    try:
        return {"heading": heading, "cards": [_card(comparison, index) for index in chosen], "reason": ""}
    except (UserError, Undecodable) as error:  # the data may be on another machine
        return {"heading": heading, "cards": [], "reason": f"No images to show: {error}."}


def _card(comparison: Comparison, index: int) -> dict[str, Any]:
    """The values of one image in comparison_section.html."""
    names, label = comparison.named.classes, int(comparison.a.labels[index])
    answers = [
        (letter, printable(names[int(answered[index])]), int(answered[index]) == label)
        for letter, answered in zip("AB", comparison.answered, strict=True)
    ]
    picture = image_picture(comparison.named.image_file(index))
    name = printable(comparison.named.image_name(index))
    return {"picture": picture, "name": name, "label": printable(names[label]), "answers": answers}
