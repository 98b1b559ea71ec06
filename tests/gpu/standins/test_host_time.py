"""The measurement of the host's time, made short."""

import json

import torch

from benchmarks.gpu import host


def test_a_short_measurement(tmp_path, monkeypatch):
    torch.cuda.memory.caching_allocator_enable(True)
    threads = torch.get_num_threads()
    short = host.Options(turns=2, repeats=2, warm_up=2)
    monkeypatch.setattr(host, "Options", lambda: short)
    try:
        host.main(["--turns", "3", "--out", str(tmp_path / "here.json")])
    finally:
        torch.set_num_threads(threads)
    result = json.loads((tmp_path / "here.json").read_text())
    assert result["method"]["turns"] == 3
    launches = {row["call"]: row["launches"] for row in result["rows"]}
    # A backward pass has torch's own launch for the upstream gradient.
    assert launches == {
        "floor": 1,
        "SSIM: loss and backward": 3,
        "SSIM: `value_and_grad`": 1,
        "SSIM: value": 1,
        "L1-SSIM: loss and backward": 3,
        "L1-SSIM: `value_and_grad`": 1,
        "L1-SSIM: value": 1,
        "MS-SSIM, 3 levels: loss and backward": 7,
        "MS-SSIM, 3 levels: `value_and_grad`": 6,
        "MS-SSIM, 3 levels: value": 4,
        "SSIM of a volume: loss and backward": 5,
        "SSIM of a volume: `value_and_grad`": 3,
        "SSIM of a volume: value": 2,
    }
    rows = {row["call"]: row for row in result["rows"]}
    assert rows["floor"]["ratio"] == 1
    for row in result["rows"]:
        assert 0 < row["tenth_us"] <= row["median_us"]
    page = tmp_path / "page.md"
    page.write_text("<!-- generated: host times --><!-- end -->")
    host.pages(tmp_path, page)
    shown = page.read_text()
    for name, row in rows.items():
        assert f"| {name} | {row['median_us']:.1f} µs | {row['tenth_us']:.1f} µs |" in shown
    assert f"commit {result['environment']['commit']}" in shown
