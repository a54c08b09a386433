"""tencrop: ImageNet papers reproduced from configuration files, exactly and fast."""

__version__ = "0.1.0"
