"""Draw figures of a network or a trained run: `python -m tencrop.visualization figure=NAME KEY=VALUE` (see --help)."""

from __future__ import annotations

from signal import SIGINT

from tencrop.signals import close_at_ctrl_c, exit_at_once

if __name__ == "__main__":
    exit_at_once(SIGINT)  # before all other imports

import shlex

from tencrop.cli.command import command, overrides
from tencrop.cli.command_line import keys_typed
from tencrop.config import UserError, VisualizationConfig, own_keys, plain_config
from tencrop.evaluation.targets import evaluation_targets
from tencrop.records.redaction import redact_arguments

NEED_NO_RUN = ("architecture", "tradeoff")


@command("visualization", VisualizationConfig)
def main(config: VisualizationConfig) -> int:
    if config.data.stage is not None:
        raise UserError(f"data.stage={config.data.stage}: a figure needs few images and reads data.root; leave it out")
    plain = plain_config(config)
    # the rest of what a user types overrides the run's configuration
    typed = [word for word in overrides() if not keys_typed([word]) & own_keys(VisualizationConfig)]
    needs_run = config.figure not in NEED_NO_RUN or config.checkpoint is not None
    # rejects missing runs and checkpoints now: importing torch takes seconds
    targets = evaluation_targets(plain, typed) if needs_run else []

    from tencrop.visualization.figures import draw_model, draw_run

    close_at_ctrl_c()
    # recorded in each figure's JSON file, without secrets such as tokens
    line = shlex.join(["python", "-m", "tencrop.visualization", *redact_arguments(overrides())])
    for target in targets:
        for path in draw_run(target, config, command=line):
            print(path)
    if not targets:
        for path in draw_model(plain, config.figure, command=line):
            print(path)
    return 0


if __name__ == "__main__":
    main()
