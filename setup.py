"""What pyproject.toml cannot say: a wheel carries a copy of conf/ in the package, where an installed verb finds it."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """In place (pip install -e .) nothing is copied: conf/ is read where it stands."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            copy = Path(self.build_lib, "tencrop", "conf")
            shutil.rmtree(copy, ignore_errors=True)  # of an earlier build, with files that are no longer there
            shutil.copytree("conf", copy, ignore=shutil.ignore_patterns(".*"))


setup(cmdclass={"build_py": BuildWithConf})
