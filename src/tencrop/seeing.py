"""Tells users of `python -m tencrop.seeing` its new name, tencrop.visualization. To be removed in version 0.3."""

import sys

if __name__ == "__main__":
    print("error: python -m tencrop.seeing: was renamed; type python -m tencrop.visualization", file=sys.stderr)
    sys.exit(2)
