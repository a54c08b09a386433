"""Draw figures of a network or a trained run: `python -m tencrop.visualization figure=NAME KEY=VALUE` (see --help)."""

from __future__ import annotations

from signal import SIGINT

from tencrop.signals import close_at_ctrl_c, exit_at_once

if __name__ == "__main__":
    exit_at_once(SIGINT)  # before all other imports

import dataclasses
import shlex

from tencrop.cli.command import command, overrides
from tencrop.cli.command_line import keys_typed
from tencrop.config import Config, VisualizationConfig
from tencrop.evaluation.targets import evaluation_targets
from tencrop.records.redaction import redact_arguments

# keys of this command only; the rest of what a user types overrides the run's configuration
OWN_KEYS = {field.name for field in dataclasses.fields(VisualizationConfig)} - {
    field.name for field in dataclasses.fields(Config)
}
NEED_NO_RUN = ("architecture", "tradeoff")


@command("visualization", VisualizationConfig)
def main(config: VisualizationConfig) -> int:
    plain = Config(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Config)})
    typed = [word for word in overrides() if not keys_typed([word]) & OWN_KEYS]
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
