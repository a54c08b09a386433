"""The command `export`: writes a trained network for use outside this framework, with a model card."""

from tencrop.cli.command import command
from tencrop.cli.command_line import command_prefix, typed_word
from tencrop.config import ExportConfig
from tencrop.export.source import export_source
from tencrop.signals import close_at_ctrl_c


@command("export", ExportConfig)
def main(config: ExportConfig) -> int:
    source = export_source(config)  # without torch, so that a mistake is reported at once

    from tencrop.evaluation.results import print_results
    from tencrop.export.export import export

    close_at_ctrl_c()
    files, results = export(source)
    if results:
        print_results(results)
    else:
        evaluate = f"{command_prefix('evaluate')} {typed_word('checkpoint', source.checkpoint)}"
        print(f"{source.label}: the card states no error, because none was measured for these weights; run {evaluate}")
    print("\n".join(map(str, files)))
    return 0
