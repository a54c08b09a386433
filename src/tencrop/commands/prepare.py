"""Writes a data set once, compares it with its fingerprints, or makes archives like ImageNet's.

Called by prepare.py and `tencrop prepare`; the work is in data/preparation/prepare.py, verify.py and simulate.py.
"""

from tencrop.cli.command import command
from tencrop.config import PrepareConfig, num_threads
from tencrop.signals import close_at_ctrl_c


@command("prepare", PrepareConfig)
def main(config: PrepareConfig) -> int:
    from tencrop.data.preparation.prepare import prepare
    from tencrop.data.preparation.verify import verify
    from tencrop.data.sources.simulate import simulate

    close_at_ctrl_c()
    if config.verify:
        verify(config.data.root, config.data.name, num_threads=num_threads(config.workers))
    elif config.simulate:
        simulate(config.data)
    else:
        prepare(config.data, workers=config.workers)
    return 0
