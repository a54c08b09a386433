"""Trackers are opened, closed and continued; wandb falls back to offline quickly and with one line."""

import errno
import http.server
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch.utils.tensorboard import SummaryWriter

from tencrop.records import wandb_tracker
from tencrop.records.run_folder import run_folder
from tencrop.records.tensorboard_tracker import TensorBoardTracker
from tencrop.records.tracked_errors import log_error_table, log_errors
from tencrop.records.tracker import Tracker, answers, tracked_id
from tencrop.records.tracking import InputImages, build_logger, close_logger, log_images
from tencrop.records.wandb_tracker import _logged_rows
from typed import present

ROOT = Path(__file__).resolve().parents[2]
KEY = "0123456789" * 4
RESULT = {"scores": "center.safetensors", "averaging": "softmax", "step": 40, "top1_error": 0.25, "top5_error": 0.0}


@pytest.fixture(autouse=True)
def private_wandb(monkeypatch, tmp_path):
    """No account, settings or server of the machine's; the service ends with the test."""
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("HOME", "home"), ("NETRC", "netrc"), ("WANDB_CONFIG_DIR", "config"), ("TMPDIR", "tmp")):
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setenv("WANDB_DATA_DIR", "set by each run, and restored at the end")
    (tmp_path / "tmp").mkdir()
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def refusing_server():
    """An HTTP server on this machine that answers everything with 401."""

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(401)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def track(config, run_dir, said):
    """One short session with everything that is tracked."""
    logger = build_logger(config, run_dir, say=said.append)
    if logger is not None:
        logger.log_metrics({"train/loss": 2.0, "lr": 0.1}, step=20)
    log_images(logger, torch.randn(2, 3, 8, 8), key="images")
    log_errors(logger, RESULT)
    log_error_table(logger, ["protocol", "ours"], [["center", "1.2"]])
    close_logger(logger)


def test_wandb_offline_without_account(make_config, data_manifest, capfd):
    config = make_config("tracker=wandb")
    run_dir = run_folder(config, data_manifest)
    said: list[str] = []
    track(config, run_dir, said)
    identity = json.loads((run_dir / "tracking" / "run.json").read_text())["id"]
    assert len(said) == 1 and "offline (not logged in)" in said[0]
    folder = os.path.relpath(run_dir / "tracking" / "wandb")
    assert f"wandb sync {folder};" in said[0] and said[0].endswith(f"wandb leet {folder}")
    track(config, run_dir, said)
    files = list((run_dir / "tracking" / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert files and {*files} == {*(run_dir / "tracking").rglob("offline-run-*/*.wandb")}, "the same tracked run"
    logger = build_logger(config, run_dir, say=said.append)
    assert isinstance(logger, WandbLogger)
    log_errors(logger, RESULT)
    assert logger.experiment.summary["center/top1_error"] == RESULT["top1_error"]
    close_logger(logger)
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""
    assert {path.name for path in run_dir.parent.parent.parent.glob("*")} <= {"runs", "tmp", "home", "config"}


@pytest.mark.parametrize("home", ["/proc/none", "tmp"], ids=["nobody can make it", "a temporary one, of cli/home.py"])
def test_wandb_without_a_home_folder_keeps_its_files_in_the_run_folder(
    home, make_config, data_manifest, monkeypatch, tmp_path, capfd
):
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "tmp"))  # as cli/home.py does
    monkeypatch.setenv("HOME", str(tmp_path / home))
    run_dir, said = run_folder(make_config("tracker=wandb"), data_manifest), list[str]()
    track(make_config("tracker=wandb"), run_dir, said)
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == "" and "offline" in said[0]
    assert list((run_dir / "tracking" / "staged").rglob("tmp*"))


def test_a_run_continues_when_wandb_fails(make_config, data_manifest, monkeypatch, capfd):
    """What wandb raises when its own process was killed stops nothing, and is said once."""

    def lost(*_, **__):
        raise ConnectionResetError("connection lost")

    config = make_config("tracker=wandb")
    logger = build_logger(config, run_folder(config, data_manifest), say=lambda line: None)
    assert isinstance(logger, WandbLogger)
    with monkeypatch.context() as patch:
        patch.setattr(logger.experiment, "log", lost)
        patch.setattr(logger.experiment, "finish", lost)
        for step in range(3):
            logger.log_metrics({"loss": 1.0}, step)
        log_images(logger, torch.zeros(1, 3, 4, 4), key="input")
        log_error_table(logger, ["protocol"], [["center"]])
        close_logger(logger)
    assert capfd.readouterr().err.count("(connection lost); the run continues without it") == 1
    logger.experiment.finish()


def test_forked_loader_processes_may_import(make_config, data_manifest, monkeypatch):
    """wandb's import hooks raise in a forked process; the reference loader's workers import scikit-learn there."""
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    config = make_config("tracker=wandb")
    logger = build_logger(config, run_folder(config, data_manifest), say=lambda line: None)
    process = multiprocessing.get_context("fork").Process(target=importlib.import_module, args=["sklearn"])
    process.start()
    process.join(60)
    assert process.exitcode == 0
    close_logger(logger)


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard"])
def test_a_full_disk_stops_no_training(tracker, make_config, data_manifest, monkeypatch, tmp_path, capfd):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    config = make_config(f"tracker={tracker}")
    logger = build_logger(config, run_folder(config, data_manifest), say=lambda line: None)
    assert isinstance(logger, Tracker)
    (tmp_path / "page.html").write_text("<p>")
    with monkeypatch.context() as patch:
        patch.setattr("wandb.Image.__init__", full)
        patch.setattr("wandb.Html.__init__", full)
        patch.setattr(SummaryWriter, "add_images", full)
        log_images(logger, torch.zeros(1, 3, 4, 4), key="input")
        logger.log_page(tmp_path / "page.html")
    close_logger(logger)
    printed = capfd.readouterr().err
    assert printed.startswith(f"{tracker}: failed (") and printed.count("No space left") == 1


def test_sessions_are_read_in_the_order_of_time(tmp_path, monkeypatch):
    """An online session and then an offline one, whose name comes first in the alphabet."""
    (tmp_path / "tracking").mkdir()
    name = tracked_id(tmp_path)
    folders = [f"run-20260101_000000-{name}", f"offline-run-20260102_000000-{name}"]
    for folder in folders:
        path = tmp_path / "tracking" / "wandb" / folder / f"run-{name}.wandb"
        path.parent.mkdir(parents=True)
        path.touch()

    def read(command, **_):
        record = {"type": "history", "history": {"item": {"folder": Path(command[-1]).parent.name}}}
        return subprocess.CompletedProcess(command, 0, json.dumps(record), "")

    monkeypatch.setattr(wandb_tracker.subprocess, "run", read)
    assert [row["folder"] for row in _logged_rows(tmp_path)] == folders


def test_a_server_answers_whatever_user_is_in_its_address(refusing_server):
    assert answers(refusing_server.replace("://", "://user:password@"))


def test_wandb_server_that_does_not_answer(make_config, data_manifest, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    config = make_config("tracker=wandb")
    said: list[str] = []
    run_dir = run_folder(config, data_manifest)
    open_run, modes = wandb_tracker._open_run, []

    def noting_modes(*arguments, mode):
        modes.append(mode)
        return open_run(*arguments, mode=mode)

    monkeypatch.setattr(wandb_tracker, "_open_run", noting_modes)
    track(config, run_dir, said)
    assert "does not answer" in said[0]
    assert modes == ["offline"], "online, wandb asks for 90 s and more"
    for path in run_dir.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_wandb_server_that_refuses_the_account(make_config, data_manifest, monkeypatch, refusing_server):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", refusing_server)
    config = make_config("tracker=wandb")
    said: list[str] = []
    track(config, run_folder(config, data_manifest), said)
    assert len(said) == 1 and "did not take the run" in said[0] and "wandb sync" in said[0]


def test_wandb_switched_off_by_its_own_setting(make_config, data_manifest, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    config = make_config("tracker=wandb")
    assert build_logger(config, run_folder(config, data_manifest)) is None


UNFIT = {
    "a server without a scheme": {"WANDB_BASE_URL": "wandb.example.org"},
    "wandb's page instead of its API": {"WANDB_BASE_URL": "https://wandb.ai"},
    "an API key with a blank": {"WANDB_API_KEY": f"{KEY} "},
    "a setting that is no truth value": {"WANDB_DISABLE_GIT": "perhaps"},
}


@pytest.mark.parametrize("case", UNFIT)
def test_settings_that_wandb_refuses_do_not_stop_a_run(case, make_config, data_manifest, monkeypatch):
    for name, value in UNFIT[case].items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    track(make_config("tracker=wandb"), run_folder(make_config(), data_manifest), said)
    assert len(said) == 1 and said[0].startswith("wandb: not tracked ("), said
    assert "type=" not in said[0] and "\n" not in said[0] and KEY not in said[0]


def test_a_run_whose_tracker_does_not_start_says_so_once(prepared_digits, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "wandb.example.org")
    words = ["experiment=lenet5_digits", f"data.root={prepared_digits}", f"runs={tmp_path}", "training.max_steps=1"]
    done = subprocess.run([sys.executable, ROOT / "train.py", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("wandb: not tracked (") == 1, done.stdout + done.stderr


@pytest.mark.parametrize("error", [KeyError("getpwuid(): uid not found: 54321"), PermissionError(13, "denied", "~")])
def test_system_errors_in_wandb_do_not_stop_a_run(error, make_config, data_manifest, monkeypatch):
    def fail(**_):
        raise error

    monkeypatch.setattr("wandb.setup", fail)
    said: list[str] = []
    track(make_config("tracker=wandb"), run_folder(make_config(), data_manifest), said)
    assert len(said) == 1 and said[0].startswith("wandb: not tracked (") and "the run continues without it" in said[0]


def test_entity_and_project_are_told_apart(make_config, data_manifest):
    config = make_config("tracker=wandb", "tracker.project=team/imagenet")
    said: list[str] = []
    logger = build_logger(config, run_folder(config, data_manifest), say=said.append)
    assert isinstance(logger, WandbLogger)
    assert (logger.experiment.entity, logger.experiment.project) == ("team", "imagenet")
    assert "offline (not logged in)" in said[0]
    close_logger(logger)


def test_tensorboard(make_config, data_manifest):
    config = make_config("tracker=tensorboard")
    run_dir = run_folder(config, data_manifest)
    track(config, run_dir, [])
    assert list((run_dir / "tracking").glob("events.*"))
    assert isinstance(build_logger(config, run_dir, say=lambda line: None), TensorBoardLogger)


def test_none(make_config, data_manifest):
    config = make_config("tracker=none")
    run_dir = run_folder(config, data_manifest)
    assert build_logger(config, run_dir) is None and not (run_dir / "tracking").exists()


def test_input_images_are_those_that_enter_the_network(tmp_path):
    """Recorded at the first forward pass of a training, whatever stands before the network."""

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Conv2d(3, 2, 1)

        def training_step(self, batch, _):
            return self.model(batch[0] * 2 - 1).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Spy(TensorBoardTracker):
        seen: torch.Tensor | None = None

        def log_pictures(self, key, pixels, step):
            assert self.seen is None, "logged once"
            self.seen = torch.from_numpy(pixels).permute(0, 3, 1, 2)

        def ignore(self, *_, **__) -> None:
            pass

        log_metrics = log_hyperparams = log_graph = save = finalize = ignore

    images = torch.rand(6, 3, 2, 4)
    logger = Spy(tmp_path, {})
    trainer = Trainer(
        accelerator="cpu",
        logger=logger,
        callbacks=[InputImages(num_images=5)],
        max_epochs=2,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=6))
    entered = (images * 2 - 1)[:5]
    stretched = (entered - entered.min()) * (255 / (entered.max() - entered.min()))
    assert torch.equal(present(logger.seen), stretched.round().byte())


def test_only_the_first_process_opens_a_run(make_config, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    build_logger(make_config("tracker=wandb"), tmp_path / "run", say=pytest.fail)
    assert not (tmp_path / "run").exists()
