import functools
import importlib
import importlib.util
import json
import os
import sys
import threading
import types

import pytest
import torch

from benchmarks.speed import measure, report, run
from benchmarks.speed.cases import CASES, THREE_WEIGHTS, Case, images
from benchmarks.speed.contenders import CONTENDERS, OURS, Call, Contender

ON_CPU = [contender for contender in CONTENDERS if "cpu" in contender.devices]

SMALL = [
    Case("SSIM", (2, 3, 24, 32), True),
    Case("SSIM", (2, 3, 24, 32), False),
    Case("SSIM", (1, 1, 13, 14, 15), True),
    Case("MS-SSIM", (2, 3, 64, 64), True, THREE_WEIGHTS),
    Case("MS-SSIM", (1, 1, 180, 190), True),
    Case("VGG", (1, 3, 40, 48), True),
    Case("LPIPS", (1, 3, 40, 48), True),
    Case("L1-SSIM", (2, 3, 24, 32), True),
    Case("LPIPS-AlexNet", (1, 3, 40, 48), True),
]

REFUSALS = {
    ("piq", SMALL[2]): "complex",
    ("frame-analytics", SMALL[2]): "2/3/4-D",
    ("pytorch-msssim", SMALL[3]): "larger than 160",
    ("kornia", SMALL[3]): "no pyramid",
    ("kornia", SMALL[4]): "no pyramid",
    ("lpips", SMALL[5]): "no content loss",
    ("piq, ContentLoss", SMALL[6]): "downloads",
    ("plain torchvision", SMALL[6]): "VGG loss only",
    ("frame-analytics", SMALL[5]): "AlexNet only",
    ("frame-analytics", SMALL[6]): "AlexNet only",
    ("piq, ContentLoss", SMALL[8]): "downloads",
    ("plain torchvision", SMALL[8]): "VGG loss only",
}

DIFFERS_AT_ODD_SIDES = {"pytorch-msssim", "piq", "frame-analytics", "torchmetrics", "MONAI"}


@pytest.fixture(autouse=True)
def eager():
    """frame-analytics compiles, which takes longer than all tests here."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize(
    ("contender", "case"),
    [
        (contender, case)
        for contender in ON_CPU
        for case in SMALL
        if case.metric in contender.metrics
    ],
    ids=lambda value: value.name,
)
def test_contenders_compute_the_stated_value(contender, case):
    if contender.distribution == "frame-analytics" and sys.platform != "linux":
        # There is nothing to install, and so nothing to compare with.
        pytest.skip("it has wheels for Linux only")

    def ready():
        call = contender.build(case, "cpu")
        step = measure.step(call, case, *images(case.shape, "cpu"))
        step()
        return call, step

    refusal = REFUSALS.get((contender.name, case))
    if refusal:
        with pytest.raises((AssertionError, NotImplementedError, ValueError), match=refusal):
            ready()
        return
    if contender.distribution == "monai" and importlib.util.find_spec("monai") is None:
        # The lock leaves it out.
        with pytest.raises(ModuleNotFoundError):
            ready()
        return
    call, step = ready()
    odd = case.odd_levels and contender.name in DIFFERS_AT_ODD_SIDES
    torchmetrics = contender.name == "torchmetrics" and case.metric == "MS-SSIM"
    monai = contender.name == "MONAI" and case.metric == "MS-SSIM" and case.shape[1] > 1
    half = contender.name == "perceptual-losses, bfloat16"
    assert bool(call.deviation) == (odd or torchmetrics or monai or half)
    value, gradient = step()
    value = measure.similarity(case, value).item()
    errors = measure.check(value, gradient, measure.expected(case, "cpu"), call.deviation)
    if call.deviation:
        assert errors["gradient_error"] > measure.GRADIENT_TOLERANCE


VOLUME = Case("SSIM", (1, 1, 13, 14, 15), False)


@pytest.mark.parametrize(
    ("name", "case", "function"),
    [
        ("fused-ssim", SMALL[1], "fused_ssim"),
        ("fused-ssim", VOLUME, "fused_ssim3d"),
        ("fussim", SMALL[1], "fused_ssim"),
        # Whether it takes volumes is for it to say.
        ("fussim", VOLUME, "fused_ssim"),
    ],
)
def test_contenders_that_need_a_gpu_are_asked(monkeypatch, name, case, function):
    """The packages are not installed here: modules with the names that they have stand for them."""

    def answer(called):
        return lambda x, y, **options: (called, options)

    module = types.ModuleType(name.replace("-", "_"))
    module.fused_ssim, module.fused_ssim3d = answer("fused_ssim"), answer("fused_ssim3d")
    for called in ("fused_ssim", "fused_ssim3d"):
        getattr(module, called).__module__ = module.__name__
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (contender,) = (c for c in CONTENDERS if c.name == name)
    call = contender.build(case, "cpu")
    called, options = call.similarity(*images(case.shape, "cpu"))
    assert called == function
    assert options == {"padding": "valid", "train": False}


NAMES = {
    "pytorch-msssim": {"pytorch_msssim": "SSIM MS_SSIM"},
    "piq": {"piq": "ssim multi_scale_ssim SSIMLoss MultiScaleSSIMLoss ContentLoss LPIPS"},
    "piqa": {"piqa": "SSIM MS_SSIM LPIPS"},
    "kornia": {"kornia.metrics": "ssim ssim3d SSIM3D", "kornia.losses": "MS_SSIMLoss"},
    "torchmetrics": {
        "torchmetrics.functional.image": "structural_similarity_index_measure "
        "multiscale_structural_similarity_index_measure"
    },
    "monai": {"monai.losses": "SSIMLoss", "monai.metrics.regression": "compute_ms_ssim"},
    "frame-analytics": {
        "frame_analytics": "set_compile_enabled ssim ms_ssim LPIPS lpips_weights_path"
    },
    "fused-ssim": {"fused_ssim": "fused_ssim fused_ssim3d"},
    "fussim": {"fussim": "fused_ssim"},
    "lpips": {"lpips": "LPIPS"},
    "torchvision": {
        "torchvision.models": "alexnet squeezenet1_1",
        "torchvision.models.vgg": "make_layers cfgs",
    },
    "fastmri": {"fastmri.losses": "SSIMLoss"},
    "scikit-image": {"skimage.metrics": "structural_similarity"},
    "fast-ssim": {"fast_ssim": "ssim"},
}
"""The names that contenders call in each distribution, by module."""

LEFT_OUT = {
    "monai": "its newest release needs a newer torch than the oldest lock has",
    "fused-ssim": "its CUDA code is compiled when it is installed",
    "fussim": "its kernels are for NVIDIA GPUs only",
    "fastmri": "it needs pandas and h5py, which nothing here uses",
    "fast-ssim": "only the benchmark of other definitions has it, and installs it by hand",
}
"""The reason why the lock has no such distribution."""

if sys.platform != "linux":
    LEFT_OUT["frame-analytics"] = "it has wheels for Linux only"


@pytest.mark.parametrize(
    "name", sorted({contender.distribution for contender in CONTENDERS} - {OURS.distribution})
)
def test_packages_have_the_names_that_are_measured(name):
    """A name that goes in a release shows here, and not as a wrong word in a table."""
    package = next(iter(NAMES[name])).partition(".")[0]
    if name in LEFT_OUT and importlib.util.find_spec(package) is None:
        # There is nothing to import. A package of the lock that is missing fails below.
        pytest.skip(f"{name} is not installed, nor in the lock: {LEFT_OUT[name]}")
    for module, names in NAMES[name].items():
        imported = importlib.import_module(module)
        assert [found for found in names.split() if not hasattr(imported, found)] == []


def test_images_in_bfloat16():
    (contender,) = (c for c in CONTENDERS if c.name == "perceptual-losses, bfloat16 images")
    case = Case("SSIM", (2, 3, 24, 40), backward=True)
    call = contender.build(case, "cpu")
    value, gradient = measure.step(call, case, *images(case.shape, "cpu"))()
    assert gradient.dtype == torch.bfloat16
    value = measure.similarity(case, value).item()
    errors = measure.check(value, gradient, measure.expected(case, "cpu"), call.deviation)
    assert measure.GRADIENT_TOLERANCE < errors["gradient_error"] < 0.05


@pytest.mark.parametrize(
    "case",
    [
        *(Case("SSIM", (1, 3, 24, 40), backward) for backward in (False, True)),
        Case("L1-SSIM", (1, 3, 24, 40), True),
    ],
)
@pytest.mark.parametrize("name", ["bfloat16 images", "reference compiled"])
def test_our_other_contenders_are_served(monkeypatch, name, case):
    """Those that are for GPUs alone."""
    eager = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", eager)
    (contender,) = (c for c in CONTENDERS if c.name == f"perceptual-losses, {name}")
    served = measure._Served(contender, "cpu")
    _, deviation = served.prepare(case)
    value, gradient = served.result()
    gradient = None if gradient is None else torch.from_numpy(gradient)
    measure.check(value, gradient, measure.expected(case, "cpu"), deviation)
    assert (gradient is None) == (not case.backward)


def test_losses_are_where_the_images_are():
    (piq,) = (c for c in CONTENDERS if c.name == "piq")
    loss = piq.build(Case("MS-SSIM", (1, 3, 180, 190), True), "meta").loss
    assert [buffer.device.type for buffer in loss.buffers()] == ["meta"]


def test_settings_are_shown():
    case = SMALL[0]._replace(backward=False)
    assert OURS.build(case, "cpu").settings == "perceptual_losses.ssim(backend='auto')"
    training = case._replace(backward=True)
    assert OURS.build(training, "cpu").settings == "perceptual_losses.SSIMLoss(backend='auto')"


def test_cases_are_distinct():
    for cases in CASES.values():
        assert len({case.name for case in cases}) == len(cases)


def test_what_memory_alone_takes():
    assert 1e8 < measure.copy_rate(2**22, "cpu") < 1e13
    text = report._floor({"pixels": 1_000_000}, 4e12)
    assert text.startswith("At the 4 TB/s of a copy")
    assert "takes 0.002 ms, and to write a gradient as well 0.003 ms" in text


def test_each_case_is_saved(monkeypatch, tmp_path):
    cases, path = SMALL[:2], tmp_path / "ended.json"

    def end_at_the_second(case, *_):
        if case == cases[1]:
            raise KeyboardInterrupt
        return {**case._asdict(), "rows": []}

    monkeypatch.setattr(run, "_compare", end_at_the_second)
    monkeypatch.setattr(run, "CASES", {"cpu": cases})
    with pytest.raises(KeyboardInterrupt):
        run.main(["--out", str(path)])
    saved = json.loads(path.read_text())
    assert [case["backward"] for case in saved["cases"]] == [True]
    assert saved["cost"] is None


def build_broken(case, device):
    raise ImportError("no such package\nand a long explanation")


def build_wrong(case, device):
    return Call(lambda x, y: (x - y).square().mean(), "mean square")


def build_late(case, device):
    calls = iter(range(1))
    ours = OURS.build(case, device).similarity

    def similarity(x, y):
        next(calls)
        return ours(x, y)

    return Call(similarity, "fails at the second call")


def build_dying(case, device):
    os._exit(3)


@pytest.fixture(scope="module")
def result_path(tmp_path_factory):
    """Of a run with contenders that fail in each of the ways there are."""
    contenders = (
        Contender("broken", "broken", build_broken),
        Contender("wrong", "wrong", build_wrong),
        Contender("late", "late", build_late),
        Contender("dying", "dying", build_dying),
        OURS,
        Contender("elsewhere", "elsewhere", build_broken, ("cuda",)),
    )
    path = tmp_path_factory.mktemp("benchmarks") / "here.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "CONTENDERS", contenders)
        patch.setattr(run, "CASES", {"cpu": SMALL[:2]})
        patch.setattr(run, "COST_SHAPE", (1, 1, 16, 16))
        assert run.main(["--rounds", "1", "--out", str(path)]) == path
    return path


def test_a_failing_contender_is_recorded(result_path):
    result = json.loads(result_path.read_text())
    for case in result["cases"]:
        rows = {row["contender"]: row for row in case["rows"]}
        assert list(rows) == ["broken", "wrong", "late", "dying", OURS.name]
        assert rows["broken"]["error"] == "ImportError: no such package"
        assert rows["wrong"]["error"].startswith("ValueError: value_error")
        assert rows["late"]["error"].startswith("StopIteration")
        assert rows["dying"]["error"] == "the process ended with code 3"


def test_on_a_gpu_contenders_get_ready_at_once(monkeypatch, tmp_path):
    """And one process of each does all, as no allocator's pages show in what CUDA tells."""
    workers = []

    class Worker:
        barrier = threading.Barrier(3, timeout=60)

        alive = True

        def __init__(self, contender, device):
            self.asked = [contender.name, device]
            workers.append(self)

        def prepare(self, case):
            self.barrier.wait()
            return "settings", ""

        def result(self):
            return exact.value, exact.gradient

        def seconds(self, calls):
            self.asked.append("seconds")
            return 0.001

        def peak(self, case, *, warm_up):
            self.asked.append("peak")
            return 4 * case.pixels

        def forget(self):
            self.asked.append("forget")

        def close(self):
            self.asked.append("close")

    case = Case("SSIM", (1, 1, 16, 16), backward=True)
    exact = measure.expected(case, "cpu")
    monkeypatch.setattr(measure, "expected", lambda case, device: exact)
    monkeypatch.setattr(measure, "Worker", Worker)
    contenders = [Contender(name, "torch", eager) for name in "abc"]
    options = run.Options("cuda", 2, 1.0)
    for result in run.compare([case, case], contenders, options):
        assert [row["error"] for row in result["rows"]] == [None, None, None]
        assert [row["peak_gradients"] for row in result["rows"]] == [1, 1, 1]
    assert [worker.asked[:2] for worker in workers] == [[name, "cuda"] for name in "abc"]
    for worker in workers:
        assert worker.asked[-4:] == ["seconds", "peak", "forget", "close"]
        assert worker.asked.count("forget") == 2


def test_what_a_run_writes(result_path):
    result = json.loads(result_path.read_text())
    assert result["environment"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert result["environment"]["versions"]["broken"] is None
    assert result["environment"]["threads"] == torch.get_num_threads()
    assert result["method"]["rounds"] == 1
    assert result["cost"]["ns_per_pixel"] > 0
    for case in result["cases"]:
        (ours,) = [row for row in case["rows"] if row["contender"] == OURS.name]
        assert ours["error"] is None
        assert len(ours["times_ms"]) == 1
        assert ours["median_ms"] == ours["times_ms"][0] > 0
        assert ours["ratio"] == 1
        assert ours["value_error"] < measure.VALUE_TOLERANCE
        assert (ours["gradient_error"] is not None) == case["backward"]
        assert "memory_error" not in ours


def test_what_a_report_shows(result_path, tmp_path):
    report.main([str(result_path), "--out", str(tmp_path)])
    text = (tmp_path / "here.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.count(" | ") for line in lines}) == 1
    names = [line.strip("| ").partition(" |")[0] for line in lines]
    assert sorted(names[2:]) == sorted(
        ["**perceptual-losses**", "broken", "dying", "late", "wrong"]
    )
    assert "ImportError: no such package |" in text
    assert "here-ssim.png" in text
    assert (tmp_path / "here-ssim.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_has_each_metric_once(tmp_path):
    """Whatever the order in which they were measured."""
    path = run.RESULTS / "nvidia-h200.json"
    result = json.loads(path.read_text())
    metrics = [metric for metric, _ in report._groups(result["cases"], "metric")]
    assert metrics == ["SSIM", "MS-SSIM", "SSIM"]
    report.main([str(path), "--out", str(tmp_path)])
    lines = (tmp_path / "nvidia-h200.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("## ")] == ["## SSIM", "## MS-SSIM"]
    sizes = dict.fromkeys((case["metric"], case["size"]) for case in result["cases"])
    found = [line for line in lines if line.startswith("### ")]
    assert sorted(found) == sorted(f"### {metric}, {size}" for metric, size in sizes)


def test_plots_show_the_rates():
    (main,) = run.RESULTS.glob("*-threads.json")
    result = json.loads(main.read_text())
    cases = [case for case in result["cases"] if case["backward"] and case["metric"] == "MS-SSIM"]
    assert len(cases) == 4  # in rows of three
    figure = report.throughput(cases, "here")
    assert [panel.get_visible() and panel.axison for panel in figure.axes] == 4 * [True] + 2 * [
        False
    ]
    for panel, case in zip(figure.axes, cases, strict=False):
        assert panel.get_title() == case["size"]
        rates = [
            case["pixels"] / 1e3 / row["median_ms"] if row["error"] is None else 0
            for row in case["rows"][::-1]
        ]
        assert [bar.get_width() for bar in panel.patches] == pytest.approx(rates)


def test_two_devices_side_by_side():
    def result(device, ms, pixels):
        row = {"contender": OURS.name, "median_ms": ms}
        case = {
            "metric": "SSIM",
            "size": "1x1x8x8",
            "backward": True,
            "pixels": pixels,
            "rows": [row],
        }
        versions = {"torch": "2"}
        environment = {
            "device": device,
            "versions": versions,
            "commit": "abc",
            "date": "2026-01-01",
        }
        return {"environment": environment, "cases": [case]}

    results = [result("a CPU", 2.0, 64_000), result("a GPU", 0.5, 64_000)]
    assert report.devices(results).splitlines()[2] == "| SSIM, 1x1x8x8 | 32 | 128 |"
    (panel,) = report.devices_plot(results).axes
    assert [list(line.get_xdata()) for line in panel.lines] == [[32.0], [128.0]]


def build_three_copies(case, device):
    return Call(lambda x, y: torch.stack([x, y, x]).mean(), "three copies")


def test_memory_is_the_peak_of_one_step():
    case = Case("SSIM", (1, 1, 1024, 1024), False)
    contender = Contender("three copies", "torch", build_three_copies)
    worker = measure.Worker(contender, "cpu")
    assert worker.peak(case, warm_up=True) / (4 * case.pixels) == pytest.approx(3, abs=0.2)
    worker.close()
