"""Train an experiment: python train.py experiment=NAME, or model=NAME for the default recipe. --help tells more."""

from tencrop.config import Config, check_data, command, derive_batches


@command("train", Config)
def main(config: Config) -> int:
    batches = derive_batches(config)
    print(batches)
    return 0


if __name__ == "__main__":
    main()
