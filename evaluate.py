"""Evaluate trained weights: python evaluate.py checkpoint=PATH protocol=ten_crop. --help tells more."""

from tencrop.commands.evaluate import main

if __name__ == "__main__":
    main()
