"""Rows of conf/errors for fine-tuned networks: the run that they start from is the one at which their recipe looks."""

import pytest

from tencrop.config import run_path
from tencrop.tables.reading import read_table


@pytest.mark.parametrize("table", ["convnext", "deit_readme", "deit_resolutions", "deit_table5", "swin", "vit_table5"])
def test_a_row_that_fine_tunes_names_the_row_of_the_run_that_it_starts_from(table, composed):
    """The one at whose folder its recipe looks, but for the 1000 epochs that no recipe has by itself."""
    fine_tuned = [row for row in read_table(table).rows if row.training and row.training.init]
    assert fine_tuned
    for row in fine_tuned:
        assert row.training is not None and row.training.init is not None
        source = composed(*row.training.init.overrides)
        if source.training.epochs != 1000:
            assert composed(*row.training.overrides).training.init.checkpoint == str(run_path(source))
