"""Carries out the steps of Dockerfile and apptainer.def in a bare Debian, and trains in the result. As root:

    apt-get install debootstrap && python bench/container.py --folder DIR [Dockerfile] [apptainer.def]

Neither Docker nor Apptainer is needed: debootstrap makes the base system, and each step runs in it with chroot. The
files of the last commit are copied. Afterwards the quickstart runs for a few steps as a user who has no name and no
HOME, on a read-only image, with one writable folder for data and runs. Prints one table (Markdown); exits with 1 if a
step failed. Takes 10 minutes or more, and 8 GB in DIR, for each file; the image is deleted unless --keep is given.

A machine that gets its packages from a mirror needs its configuration in the image while it is built:
--bind PATH[:PATH IN THE IMAGE] shows the image a file or folder of this machine, --env NAME=VALUE sets a variable.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MIRROR = "http://deb.debian.org/debian"
NOBODY = 12345  # a user id that /etc/passwd does not have
FEW_STEPS = "training.max_steps=20"


@dataclass(frozen=True)
class Recipe:
    """How an image is built: what to start from, the steps in order, and the environment of its programs."""

    base: str
    steps: list[tuple[str, str]]  # (kind, argument): run a command, enter a folder, copy files
    path: str  # PATH of the finished image
    program: list[str]  # the words before `train ...`


def read_dockerfile(text: str) -> Recipe:
    """The recipe of a Dockerfile that has only FROM, RUN, WORKDIR, COPY, `ENV PATH=` and CMD."""
    lines = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ").splitlines()
    pairs = [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines) if word]
    unknown = {word for word, _ in pairs} - {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "CMD"}
    if unknown:
        raise ValueError(f"Dockerfile: {', '.join(sorted(unknown))} is not carried out here; extend bench/container.py")
    kinds = {"RUN": "run", "WORKDIR": "enter", "COPY": "copy"}
    steps = [(kinds[word], rest) for word, rest in pairs if word in kinds]
    (base,), (path,) = ([rest for word, rest in pairs if word == wanted] for wanted in ("FROM", "ENV"))
    return Recipe(base, steps, path.removeprefix("PATH="), ["tencrop"])


def read_apptainer(text: str) -> Recipe:
    """The recipe of a definition file with the sections %files, %post, %environment and %runscript."""
    text = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    head, *sections = re.split(r"^%", text, flags=re.M)
    bodies = {name: body.strip() for name, _, body in (section.partition("\n") for section in sections)}
    commands = [" ".join(line.split()) for line in bodies["post"].splitlines()]
    steps = [("copy", bodies["files"])]
    for command in commands:
        steps.append(("enter", command.removeprefix("cd ")) if command.startswith("cd ") else ("run", command))
    path = bodies["environment"].removeprefix("export PATH=")
    program = ["/bin/sh", "-c", bodies["runscript"], "runscript"]
    return Recipe(re.findall(r"^From: (.*)$", head, re.M)[0], steps, path, program)


READERS = {"Dockerfile": read_dockerfile, "apptainer.def": read_apptainer}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"{' or '.join(READERS)}; both if none is named")
    parser.add_argument("--folder", type=Path, required=True, help="for the images; on a disk with 8 GB left")
    parser.add_argument("--bind", action="append", default=[], help="a file or folder that the steps can read")
    parser.add_argument("--env", action="append", default=[], help="a variable of the steps")
    parser.add_argument("--mirror", default=MIRROR, help="where debootstrap finds Debian")
    parser.add_argument("--keep", action="store_true", help="keep the image")
    options = parser.parse_args()
    if unknown := set(options.files) - set(READERS):
        parser.error(f"{', '.join(sorted(unknown))}: choose among {', '.join(READERS)}")
    if shutil.which("debootstrap") is None:
        parser.error("debootstrap is missing; run this as root, after: apt-get install debootstrap")
    table = Table()
    for name in options.files or READERS:
        recipe, image = READERS[name]((ROOT / name).read_text()), options.folder / f"{name}.image"
        shutil.rmtree(image, ignore_errors=True)
        (options.folder / "data").mkdir(parents=True, exist_ok=True)
        try:
            _build(recipe, image, options, table, name)
            _use(recipe, image, table, name)
        except subprocess.CalledProcessError:
            break
        finally:
            if not options.keep:
                shutil.rmtree(image, ignore_errors=True)
    return int(table.has_failed)


class Table:
    """Prints a row for each step."""

    def __init__(self) -> None:
        self.has_failed = False
        print("| file | step | result | seconds |\n|---|---|---|--:|", flush=True)

    def row(self, file: str, step: str, words: list[str], *, fails: bool = False) -> str:
        """Run the words, print a row, and return the output. Raises CalledProcessError if the result is unexpected."""
        start = time.monotonic()
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        is_good = (done.returncode != 0) == fails
        result = ("refused, as it should be" if fails else "ok") if is_good else f"FAILED, exit code {done.returncode}"
        print(f"| {file} | `{step}` | {result} | {time.monotonic() - start:.0f} |", flush=True)
        if not is_good:
            self.has_failed = True
            print(done.stdout[-6000:], file=sys.stderr)
            raise subprocess.CalledProcessError(done.returncode, words)
        return done.stdout


def _build(recipe: Recipe, image: Path, options: argparse.Namespace, table: Table, name: str) -> None:
    """Carry out the steps as root."""
    suite = recipe.base.removeprefix("debian:")
    table.row(name, f"FROM {recipe.base}", ["debootstrap", "--variant=minbase", suite, str(image), options.mirror])
    commit, folder = image.with_name("commit"), "/"
    shutil.rmtree(commit, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(commit)], check=True)
    mounts = ["mount -t proc proc $IMAGE/proc", "mount --rbind /dev $IMAGE/dev", _bind("/etc/resolv.conf")]
    mounts += [_bind(*word.split(":", 1)) for word in options.bind]
    environment = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", *options.env]
    for kind, argument in recipe.steps:
        if kind == "enter":
            folder = argument
            (image / folder[1:]).mkdir(parents=True, exist_ok=True)
        elif kind == "copy":
            *sources, target = argument.split()
            for source in sources:
                _copy(commit / source, image / (folder[1:] if target.startswith(".") else target[1:]))
        else:
            step = (
                f"cd {shlex.quote(folder)} && exec env -i {shlex.join(environment)} /bin/sh -ec {shlex.quote(argument)}"
            )
            table.row(name, argument, _in_image(image, mounts, ["/bin/sh", "-c", step]))


def _use(recipe: Recipe, image: Path, table: Table, name: str) -> None:
    """Train as a user without a name, in the finished image, which is read-only; only /data and /tmp can be written."""
    data = image.with_name("data")
    shutil.rmtree(data)
    data.mkdir()
    shutil.chown(data, NOBODY, NOBODY)
    (image / "data").mkdir()
    mounts = [
        "mount --bind $IMAGE $IMAGE", "mount -o remount,ro,bind $IMAGE", "mount -t proc proc $IMAGE/proc",
        "mount --rbind /dev $IMAGE/dev", "mount -t tmpfs tmpfs $IMAGE/tmp", f"mount --bind {data} $IMAGE/data",
    ]  # fmt: skip
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    path = recipe.path.replace("$PATH", "/usr/local/bin:/usr/bin:/bin")
    for home in ([], ["HOME=/"]):  # Docker sets HOME=/ for such a user, other programs leave it unset
        prefix = [*user, "env", "-i", "--chdir=/data", f"PATH={path}", *home]
        label = " ".join(["env", *home, recipe.program[0].removeprefix("/bin/")])
        for command in quickstart():
            step = f"{label} {shlex.join(command)}"
            output = table.row(name, step, _in_image(image, mounts, [*prefix, *recipe.program, *command]))
            print(output, file=sys.stderr, flush=True)
        shutil.rmtree(data / "runs")
    table.row(
        name, "touch /tencrop/train.py", _in_image(image, mounts, [*prefix, "touch", "/tencrop/train.py"]), fails=True
    )


def quickstart() -> list[list[str]]:
    """The commands of `make quickstart`, from the Makefile, as words of the program `tencrop`, cut short."""
    recipe = re.findall(r"^quickstart:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[0]
    commands = [shlex.split(line.replace("$(BIN)/python", "")) for line in recipe.splitlines()]
    return [
        [words[0].removesuffix(".py"), *words[1:], *([FEW_STEPS] if words[0] in ("train.py", "evaluate.py") else [])]
        for words in commands
    ]


def _in_image(image: Path, mounts: list[str], words: list[str]) -> list[str]:
    """The words that run `words` in the image, with mounts that vanish afterwards."""
    script = "\n".join(["set -e", f"IMAGE={shlex.quote(str(image.absolute()))}", *mounts, 'exec chroot "$IMAGE" "$@"'])
    return ["unshare", "--mount", "--pid", "--fork", "/bin/sh", "-c", script, "sh", *words]


def _bind(source: str, target: str | None = None) -> str:
    """A shell line that shows a file or folder of this machine in the image, read-only."""
    target = f"$IMAGE{target or source}"
    make = f"mkdir -p {target}" if Path(source).is_dir() else f"mkdir -p $(dirname {target}); touch {target}"
    return f"{make}; mount --bind {shlex.quote(source)} {target}; mount -o remount,ro,bind {target}"


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True)
    else:
        shutil.copy(source, target)


if __name__ == "__main__":
    sys.exit(main())
