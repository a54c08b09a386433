"""Writes a data set once, compares it with its fingerprints, or makes archives like ImageNet's.

Called by prepare.py and `tencrop prepare`; the work is in data/prepare.py, verify.py and simulate.py.
"""

from tencrop.config import PrepareConfig, command, num_threads
from tencrop.signals import close_at_ctrl_c


@command("prepare", PrepareConfig)
def main(config: PrepareConfig) -> int:
    from tencrop.data.prepare import prepare
    from tencrop.data.simulate import simulate
    from tencrop.data.verify import verify

    close_at_ctrl_c()
    if config.verify:
        verify(config.data.root, config.data.name, num_threads=num_threads(config.workers))
    elif config.simulate:
        simulate(config.data)
    else:
        prepare(config.data, workers=config.workers)
    return 0
