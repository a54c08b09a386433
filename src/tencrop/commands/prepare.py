"""The command prepare: converts a data set for training, verifies a prepared one, or simulates ImageNet's archives."""

from tencrop.cli.command import command
from tencrop.config import PrepareConfig, UserError, num_threads
from tencrop.signals import close_at_ctrl_c


@command("prepare", PrepareConfig)
def main(config: PrepareConfig) -> int:
    if config.data.subset_of_val is not None:
        raise UserError(
            f"data.subset_of_val={config.data.subset_of_val}: a prepared folder has the whole split; give the list to"
            " evaluate.py"
        )
    if config.data.check_md5 and (config.verify or config.simulate):
        other = "verify=true reads the prepared files" if config.verify else "simulate=true writes archives"
        raise UserError(f"data.check_md5=true: {other}, and checks no published ones; leave one of the two out")
    # Imported late, so that --help and a mistyped key are answered quickly.
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
