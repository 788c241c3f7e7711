"""The GPU's benchmark, on a CPU and at small size."""

import json
import sys

import pytest

from benchmarks import gpu, harness

CPU = ("--tiny", "--device", "cpu", "--rounds", "1", "--threads", "1")


@pytest.fixture
def command(monkeypatch):
    """Sets this process's command line."""
    return lambda *words: monkeypatch.setattr(sys, "argv", ["gpu.py", *words])


def row(table, name):
    """Return the cells of a row by the head of their column."""
    line = next(line for line in table.splitlines() if line.startswith(f"| {name}"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    return dict(zip(gpu.HEAD, cells, strict=True))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "opt" else pytest.mark.slow)
        for name in gpu.MODELS
    ],
)
def test_a_model_on_a_cpu(name, command, capsys):
    command(*CPU, "--model", name)
    assert gpu.main() == 0
    cells = row(capsys.readouterr().out, gpu.OURS)
    assert cells[""] == "ours, attention by xla" and cells["ratio"] == "1.00"
    assert float(cells["images/s"]) > 0 and float(cells["device GB"]) > 0.1
    assert cells["MFU"] == cells["of executed FLOPs"] == "-"  # a CPU's peak


@pytest.mark.slow
@pytest.mark.parametrize("name", ["opt", "t5"])
def test_a_model_beside_torch(name, command, capsys):
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", minversion="5")
    command(*CPU, "--model", name, "--torch_python", sys.executable)
    assert gpu.main() == 0
    table = capsys.readouterr().out
    ours, peer = row(table, gpu.OURS), row(table, "transformers")
    assert float(ours["ratio"]) > 0 and peer["ratio"] == "1.00"
    assert float(peer["images/s"]) > 0 and float(peer["device GB"]) > 0.1


class Contestant:
    """Answers as a process with a GPU of 100 FLOP/s would."""

    def __init__(self, name, seconds):
        self.name, self.seconds = name, seconds

    def ask(self, method, **settings):
        answers = {"versions": self.name, "step": self.seconds, "device_peak": 2.0}
        return answers.get(method, [4, 20, 100])


def test_rates_as_shares_of_the_peak():
    workers = [Contestant("ours", 0.5), Contestant("original", 1.0)]
    settings = {"rows": 5, "text": 3, "target": 0}
    about, table = gpu.measure(workers, 1, settings)
    assert about == "ours, original"
    shares = ("ratio", "MFU", "of executed FLOPs", "device GB")
    assert [row(table, "ours")[name] for name in shares] == [
        "2.00",
        "40.0%",
        "40.0%",
        "2.0",
    ]
    assert [row(table, "original")[name] for name in shares] == [
        "1.00",
        "20.0%",
        "",
        "2.0",
    ]


@pytest.mark.parametrize("device, attentions", [("cuda", 2), ("cpu", 1)])
def test_ours_and_torch_run_on_the_device(device, attentions, command, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "another")
    started = []

    class Process:
        def __init__(self, command, *, env, **_):
            started.append((command[-1], env["JAX_PLATFORMS"]))

    monkeypatch.setattr(harness.subprocess, "Popen", Process)
    command("--tiny", "--device", device, "--torch_python", "python")
    settings = {"rows": 2, "text": 24, "target": 0}
    gpu.contestants(gpu.arguments(), "opt", settings)
    *ours, (settings, _) = started
    assert [platform for _, platform in ours] == [device] * attentions
    assert json.loads(settings)["device"] == device


def test_cudnn_on_a_cpu_is_refused(command, capsys):
    command(*CPU, "--attention", "cudnn")
    with pytest.raises(SystemExit):
        gpu.arguments()
    assert "--attention cudnn needs a GPU" in capsys.readouterr().err
