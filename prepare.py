"""Write a data set once: python prepare.py data=digits | data=imagefolder data.source=DIR data.root=DIR.

Reads conf/prepare.yaml; the work is in src/tencrop/data/prepare.py.
"""

from tencrop.config import PrepareConfig, command


@command("prepare", PrepareConfig)
def main(config: PrepareConfig) -> int:
    from tencrop.data.prepare import prepare

    prepare(config.data, workers=config.workers)
    return 0


if __name__ == "__main__":
    main()
