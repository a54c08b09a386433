"""The former name of `python -m tencrop.visualization`; it goes with version 0.3."""

import sys

if __name__ == "__main__":
    print("error: python -m tencrop.seeing: is called python -m tencrop.visualization now", file=sys.stderr)
    sys.exit(2)
