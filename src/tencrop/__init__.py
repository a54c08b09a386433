"""tencrop: ImageNet papers reproduced from configuration files, exactly and fast."""

__version__ = "0.2.0"
