"""Write a data set once: python prepare.py data=imagenet data.source=DIR data.root=DIR (data=imagefolder, digits, ...).

Reads conf/prepare.yaml; the work is in src/tencrop/data/prepare.py, verify.py and simulate.py.
"""

from signal import SIGINT

from tencrop.signals import close_at_ctrl_c, exit_at_once

if __name__ == "__main__":
    exit_at_once(SIGINT)  # before the imports below

from tencrop.config import PrepareConfig, command, num_threads


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


if __name__ == "__main__":
    main()
