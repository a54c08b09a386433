"""Compiled training steps: the numbers, the number of compilations, names of weights, and what is said about failures.

Most tests replace torch's code generator, which takes a minute for a small network, by its tracer alone (aot_eager):
graphs, guards and compilations are those of the real one, and its operations are torch's own.
"""

import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from tencrop.config import UserError, derive_batches
from tencrop.data.store.manifest import read_manifest
from tencrop.training import compilation
from tencrop.training.compilation import CompiledNetwork, check_compiler
from tencrop.training.fit import build, fit
from training import runs

COMPILED = ("training.compile=default", "deterministic=false")
# BatchNorm in two groups, three micro-batches a step, a moving average; dropout draws other masks when compiled
OPTIONS = ("model.kwargs.drop_rate=0", "hardware.max_micro_batch=4", "training.global_batch=12", "training.epochs=4")


@pytest.fixture
def traced(monkeypatch):
    """Replaces the code generator by torch's own operations; torch's counters of compilations."""
    monkeypatch.setattr(compilation.torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(False)  # fit() has switched them on where a run is not compiled


def train_here(root: Path, folder: Path, *options: str, **fault) -> tuple[str, dict[str, torch.Tensor]]:
    """Status of the run, and its state dict."""
    config = runs.recipe(root, *OPTIONS, *options)
    data, classifier = build(config, batches=derive_batches(config), manifest=read_manifest(root))
    folder.mkdir(exist_ok=True)
    result = fit(data, classifier, run_dir=folder, callbacks=[runs.Fault(**fault)] if fault else [])
    return result.status, classifier.state_dict()


def test_a_compiled_run_has_the_numbers_and_names_of_an_eager_one_and_resumes(traced, prepared_photos, tmp_path):
    _, eager = train_here(prepared_photos, tmp_path / "eager", "deterministic=false")
    assert not traced["stats"]
    _, compiled = train_here(prepared_photos, tmp_path / "compiled", *COMPILED)
    # once in 4 epochs: neither for another micro-batch or step, nor for validations, which are not compiled
    assert traced["stats"]["unique_graphs"] == 1 and not traced["graph_break"]
    assert list(compiled) == list(eager)
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-4, msg=name)
    fault = {"signal_number": signal.SIGTERM, "at_step": 2}
    assert train_here(prepared_photos, tmp_path / "stopped", *COMPILED, **fault)[0] == "interrupted"
    status, resumed = train_here(prepared_photos, tmp_path / "stopped", *COMPILED)
    assert status == "complete"
    for name, value in compiled.items():
        assert torch.equal(resumed[name], value), name


def test_progressive_resizing_compiles_once_for_each_size(traced, prepared_photos, tmp_path):
    sizes = ("augmentation.progressive.start_size=16", "augmentation.progressive.start_ramp=0",
             "augmentation.progressive.end_ramp=2", "augmentation.progressive.multiple=8")  # fmt: skip
    train_here(prepared_photos, tmp_path, *COMPILED, *sizes)
    assert traced["stats"]["unique_graphs"] == 3  # 16, 24 and 32 pixels; two epochs have 32


# By DDP over gloo, with two micro-batches a step and a moving average
TWO_PROCESSES = (*COMPILED, *OPTIONS, "hardware.devices=2", "hardware.max_micro_batch=3", "model.bn_group=3")


def test_two_processes_compile_once_and_have_equal_weights(train):
    run = train("run", *TWO_PROCESSES, "training.epochs=2", num_ranks=2, traced=True)
    assert run.exit_codes == [0, 0] and [run.result(rank)["num_graphs"] for rank in (0, 1)] == [1, 1]
    for name in ("weights_sha256", "ema_sha256"):
        assert run.result(0)[name] == run.result(1)[name]


@pytest.mark.long
def test_two_compiled_processes_resume_bit_for_bit(train):
    whole = train("whole", *TWO_PROCESSES, num_ranks=2, traced=True)
    fault = {"signal_number": signal.SIGUSR1, "at_step": 2}
    assert train("run", *TWO_PROCESSES, num_ranks=2, traced=True, fault=fault).exit_code == 75
    resumed = train("run", *TWO_PROCESSES, num_ranks=2, traced=True)
    assert resumed.exit_codes == whole.exit_codes == [0, 0] and resumed.rows() == whole.rows()
    for name in ("weights_sha256", "ema_sha256"):
        assert {run.result(rank)[name] for run in (whole, resumed) for rank in (0, 1)} == {whole.result()[name]}


class Broken(nn.Module):
    """Torch cannot trace a part of it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, inputs):
        inputs = self.layer(inputs)
        torch._dynamo.graph_break()
        return self.layer(inputs)


def test_what_runs_without_compilation_is_said_once(traced, composed, capsys):
    network, inputs = Broken(), torch.ones(1, 2)
    compiled = CompiledNetwork(network, composed("model=lenet5", *COMPILED))
    torch.testing.assert_close(compiled(inputs), network(inputs))
    said = capsys.readouterr().err
    assert said.startswith("training.compile=default: parts of lenet5 run without compilation (graph breaks: ")
    assert "torch._dynamo.graph_break()" in said and said.count("\n") == 1
    compiled(inputs)
    assert capsys.readouterr().err == ""


def test_a_mode_with_cuda_graphs_has_none_on_a_cpu_and_says_so(composed, capsys, monkeypatch):
    monkeypatch.setattr(compilation.torch, "compile", lambda function, **_: function)
    said = {}
    for mode in ("default", "reduce-overhead", "max-autotune"):
        for hardware in ("cpu", "gpu1"):
            options = (f"training.compile={mode}", "deterministic=false", f"hardware={hardware}")
            CompiledNetwork(nn.Linear(2, 2), composed("model=lenet5", *options))(torch.ones(1, 2))
            said[mode, hardware] = capsys.readouterr().err
    graphs = "a CPU has no CUDA graphs; the network is compiled without them"
    for mode in ("reduce-overhead", "max-autotune"):
        assert said.pop((mode, "cpu")) == f"training.compile={mode}: {graphs}\n"
    assert set(said.values()) == {""}


def test_a_network_that_cannot_be_compiled_is_refused(composed, monkeypatch):
    def fail(graph, inputs):
        raise RuntimeError("no kernel for this layer")

    monkeypatch.setattr(compilation.torch, "compile", partial(torch.compile, backend=fail))
    torch._dynamo.reset()
    compiled = CompiledNetwork(nn.Linear(2, 2), composed("model=lenet5", *COMPILED))
    with pytest.raises(UserError, match=r"cannot compile lenet5: .*no kernel for this layer.*set training\.compile=n"):
        compiled(torch.ones(1, 2))


@pytest.mark.parametrize("is_signaled", [True, False], ids=["signaled", "not signaled"])
def test_a_signal_that_also_ends_the_compiler_is_an_interruption(is_signaled, prepared_photos, tmp_path, monkeypatch):
    """Ctrl-C and scancel reach all processes of a run."""

    def fail(graph, inputs):
        if is_signaled:
            signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("g++ died with SIGTERM")

    monkeypatch.setattr(compilation.torch, "compile", partial(torch.compile, backend=fail))
    torch._dynamo.reset()
    if is_signaled:
        assert train_here(prepared_photos, tmp_path, *COMPILED)[0] == "interrupted"
        assert not (tmp_path / "checkpoints" / "last.ckpt").exists()
    else:
        with pytest.raises(UserError, match=r"cannot compile test_efficientnet: .*died with SIGTERM"):
            train_here(prepared_photos, tmp_path, *COMPILED)


def test_a_network_that_is_compiled_ever_again_is_refused(traced, composed):
    """Torch would run it without compilation, and only log that."""
    compiled = CompiledNetwork(nn.Linear(2, 2), composed("model=lenet5", *COMPILED))
    with pytest.raises(UserError, match=r"cannot compile lenet5: .*limit"):
        for num_images in range(2, 20):
            compiled(torch.ones(num_images, 2))


def test_the_limit_is_of_one_network(traced, composed):
    """As many networks as a sweep over seeds has, in one process."""
    for _ in range(compilation.TORCH_LIMIT + 2):
        CompiledNetwork(nn.Linear(2, 2), composed("model=lenet5", *COMPILED))(torch.ones(1, 2))


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_cuda_graphs_need_whole_batches(mode, composed):
    options = [f"training.compile={mode}", "hardware=gpu1"]
    derive_batches(composed(*options))
    with pytest.raises(UserError, match=rf"compile={mode}: .* 2 micro-batches; set training\.compile=default"):
        derive_batches(composed(*options, "hardware.max_micro_batch=128"))


@pytest.mark.parametrize("options", [(), ("deterministic=true",), ("hardware=gpu1", "deterministic=true")], ids=str)
def test_a_deterministic_run_is_not_compiled(options, composed):
    hardware = [] if any("hardware" in option for option in options) else ["hardware=cpu"]
    with pytest.raises(UserError, match=r"compile=max-autotune: .*set deterministic=false or training\.compile=none"):
        derive_batches(composed("training.compile=max-autotune", *hardware, *options))
    derive_batches(composed("training.compile=max-autotune", "hardware=gpu1"))


def test_a_machine_without_a_compiler_is_refused(composed, monkeypatch):
    from torch._inductor import config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", (None, "no-such-compiler"))
    check_compiler(composed("hardware=cpu"))
    with pytest.raises(UserError, match=r"there is no no-such-compiler; install one, or set training\.compile=none"):
        check_compiler(composed("hardware=cpu", *COMPILED))


@pytest.mark.long
def test_generated_code_is_close_to_torchs_own(prepared_photos, tmp_path):
    """The real code generator, on a small rate, at which rounding is not amplified."""
    torch._dynamo.reset()
    states = [
        train_here(
            prepared_photos, tmp_path / mode, f"training.compile={mode}", "deterministic=false", "optimizer.lr=1e-3"
        )[1]
        for mode in ("none", "default")
    ]
    torch._dynamo.reset()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-4, msg=name)
