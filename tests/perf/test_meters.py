"""Rates, peak FLOP/s, data wait and memory."""

import dataclasses
import mmap
import sys
import time

import jax
import pytest

from blip2_jax.perf import meters


@dataclasses.dataclass
class Device:
    device_kind: str


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", None),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_peaks_by_device(kind, peak):
    assert meters.peak_flops(Device(kind)) == peak


def test_waiting_counts_and_pauses_do_not(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(meters, "peak_flops", lambda device: 1e6)
    meter = meters.Meter(batch_size=16, flops_per_image=1e4)
    with meter.waiting():
        now[0] += 1
    now[0] += 1
    with meter.compiling():
        now[0] += 2
    with meter.paused():
        now[0] += 100
    meter.count_step()
    meter.count_step()
    values = meter.read()
    per_chip = 2 * 16 / 4 / jax.device_count()
    assert values["images_per_second_per_chip"] == pytest.approx(per_chip)
    assert values["data_wait_share"] == pytest.approx(0.25)
    assert values["seconds_per_step"] == pytest.approx(2.0)
    assert values["compile_seconds"] == pytest.approx(2.0)
    assert values["mfu"] == pytest.approx(per_chip * 1e4 / 1e6)
    assert values["peak_memory_gb"] > 0
    assert not {"mfu", "compile_seconds"} & meters.Meter(16, None).read().keys()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc of Linux")
def test_host_memory_rises_and_falls():
    before = meters.host_memory_bytes()
    with mmap.mmap(-1, 2**26) as pages:  # malloc may keep the memory of an array
        for start in range(0, 2**26, mmap.PAGESIZE):
            pages[start] = 1
        during = meters.host_memory_bytes()
        assert during - before == pytest.approx(2**26, rel=0.1)
    assert meters.host_memory_bytes() - before < 2**26 / 10
    logged = meters.Meter(16, None).read()["host_memory_gb"]
    assert logged == pytest.approx(before / 1e9, rel=0.1)


def test_host_memory_is_left_out_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(meters, "_STATM", tmp_path / "statm")
    assert "host_memory_gb" not in meters.Meter(16, None).read()
