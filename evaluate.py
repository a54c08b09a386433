"""Evaluate trained weights: python evaluate.py checkpoint=PATH protocol=ten_crop. --help tells more."""

from tencrop.config import Config, command, overrides
from tencrop.evaluation.members import members_of


@command("evaluate", Config)
def main(config: Config) -> int:
    members = members_of(config, overrides())  # refuses what is missing before torch is imported

    from tencrop.evaluation.evaluate import evaluate_members
    from tencrop.evaluation.results import print_results

    if found := evaluate_members(members):  # empty but on the first of several processes
        print_results([evaluated.result for evaluated in found])
        print("\n".join(f"{evaluated.out}/{evaluated.result['scores']}" for evaluated in found))
    return 0


if __name__ == "__main__":
    main()
