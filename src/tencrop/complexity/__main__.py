"""Print a network's cost or compare it with a published table: `python -m tencrop.complexity model=NAME`."""

from signal import SIGINT

from tencrop.signals import close_at_ctrl_c, exit_at_once

if __name__ == "__main__":
    exit_at_once(SIGINT)  # before all other imports

import sys

from tencrop.cli.command import command
from tencrop.config import ComplexityConfig, UserError


@command("complexity", ComplexityConfig)
def main(config: ComplexityConfig) -> int:
    if config.model is not None and config.sizes is not None:
        raise UserError("model and sizes: give one of the two; a table of sizes names its models")

    # imports timm and torchvision, which takes seconds: --help and refused keys must not wait for it
    from tencrop.complexity import golden, published, render
    from tencrop.complexity.networks import complexity_of

    close_at_ctrl_c()
    if config.sizes is not None:
        comparisons = published.compare(config.sizes)
        sys.stdout.write(published.FORMATS[config.format](config.sizes, comparisons))
        # exit code 1 if a printed number differs from ours without an explanation, so that scripts and CI notice
        return 0 if all(comparison.is_settled for comparison in comparisons) else 1
    if config.model is None:
        counts = golden.golden_counts()
        formats = {"terminal": golden.terminal, "markdown": golden.markdown, "csv": golden.csv_text}
        sys.stdout.write(formats.get(config.format, golden.golden_text)(counts))
        return 0
    found = complexity_of(config.model, config.image_size, config.num_classes)
    name, all_layers = config.model.name, config.layers == "all"
    if config.format == "csv":
        sys.stdout.write(render.csv_table(found, all_layers=all_layers))
    else:
        tables = {"terminal": render.terminal_table, "markdown": render.markdown_table, "json": render.json_text}
        sys.stdout.write(tables[config.format](name, found, all_layers=all_layers))
    return 0


if __name__ == "__main__":
    main()
