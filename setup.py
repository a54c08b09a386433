"""Build step that pyproject.toml cannot express: copies conf/ into a wheel, where the installed commands read it."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """Copies conf/ into the package, except for pip install -e ., which uses the checkout's conf/ directly."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            copy = Path(self.build_lib, "tencrop", "conf")
            shutil.rmtree(copy, ignore_errors=True)  # an earlier build's copy may contain deleted files
            shutil.copytree("conf", copy, ignore=shutil.ignore_patterns(".*"))


setup(cmdclass={"build_py": BuildWithConf})
