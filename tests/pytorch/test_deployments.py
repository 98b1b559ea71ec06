"""The recipes of docs/deploying.md, as they stand there, and the limits that the page names."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnxruntime
import pytest
import torch

from perceptual_losses import L1MSSSIMLoss, MSSSIMLoss, SSIMLoss, VGGLoss

PAGE = Path(__file__).parents[2] / "docs" / "deploying.md"
SECTIONS = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)

pytestmark = [
    # The pages say so too: they have random features because ImageNet's weights are a download.
    pytest.mark.filterwarnings("ignore:the features of .* are random"),
    # What exporters and trainers say about torch, and torch about itself.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Runs the page's first block and that of a section; gives the names that they leave."""
    monkeypatch.chdir(tmp_path)

    def run(title):
        (section,) = (text for text in SECTIONS[1:] if text.startswith(f"{title}\n"))
        names = {"__name__": "recipe"}
        for text in (SECTIONS[0], section):
            for code in re.findall(r"```py\n(.*?)```", text, re.DOTALL):
                exec(compile(code, title, "exec"), names)
        return names

    return run


def pair(*shape):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(shape, generator=generator)
    return x, 0.7 * x + 0.3 * torch.rand(shape, generator=generator)


def step(function, x, y):
    x = x.clone().requires_grad_()
    value = function(x, y)
    return value.detach(), *torch.autograd.grad(value, x)


def assert_step(function, loss, x, y):
    """The value and the gradient of ``function`` are those of the loss."""
    (value, gradient), (expected, exact) = step(function, x, y), step(loss, x, y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (gradient - exact).norm() < 1e-5 * exact.norm()


def open_sides(smallest):
    dim = torch.export.Dim
    return {0: dim("n", min=1), 2: dim("h", min=smallest), 3: dim("w", min=smallest)}


def test_every_section_is_run_by_a_test():
    titles = [text.partition("\n")[0] for text in SECTIONS[1:]]
    run = re.findall(r"recipe\(\"(.*?)\"\)", Path(__file__).read_text())
    assert sorted(titles) == sorted(run)


def test_export(recipe):
    names = recipe("torch.export")
    assert "perceptual_losses::" not in str(names["program"].graph)
    assert names["prediction"].grad.abs().max() > 0
    for shape in ((1, 3, 12, 12), (3, 3, 41, 12), (2, 3, 130, 257)):
        assert_step(names["loaded"], names["loss"], *pair(*shape))
    # The message of the check is the same from torch 2.9 on; earlier releases have another type.
    with pytest.raises((AssertionError, RuntimeError), match=">= 12"):
        names["loaded"](*pair(2, 3, 11, 12))


def test_an_export_with_levels_serves_all_sizes_from_the_smallest():
    loss = L1MSSSIMLoss(levels=2, window_size=5)
    sides = open_sides(5 * 2 + 1)
    program = torch.export.export(loss, pair(2, 3, 20, 23), dynamic_shapes=(sides, sides))
    for shape in ((1, 3, 11, 11), (3, 3, 12, 11), (1, 3, 90, 131)):
        assert_step(program.module(), loss, *pair(*shape))


def test_onnx(recipe):
    names = recipe("ONNX")
    assert names["score"] == pytest.approx(names["loss"](names["x"], names["y"]).item(), abs=1e-5)
    for shape in ((1, 3, 11, 11), (3, 3, 71, 120)):
        assert_score(names["session"], names["loss"], *pair(*shape))


def test_onnx_of_ssim(tmp_path):
    loss, (x, y) = SSIMLoss(reduction="none").eval(), pair(2, 3, 32, 41)
    path = tmp_path / "ssim.onnx"
    torch.onnx.export(loss, (x, y), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert_score(session, loss, x, y)


def assert_score(session, loss, x, y):
    (score,) = session.run(None, {"x": x.numpy(), "y": y.numpy()})
    assert abs(torch.from_numpy(score) - loss(x, y)).max() < 1e-5


# Spares the compiler what takes longer than one small library: a third of the time.
QUICK = {
    "aot_inductor.precompile_headers": False,
    "aot_inductor.compile_wrapper_opt_level": "O0",
    "cpp.vec_isa_ok": True,
}


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
def test_aot_inductor(recipe):
    with torch._inductor.config.patch(QUICK):
        names = recipe("AOTInductor")
    x, y = pair(2, 3, 64, 80)
    for images in ((names["x"], names["y"]), (x, y)):
        value, expected = names["compiled"](*images), names["loss"](*images)
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
        assert not value.requires_grad


# What the trainer finds worth saying about a machine with a GPU, few workers or few steps.
@pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")
def test_lightning(recipe):
    names = recipe("Lightning")
    assert names["trainer"].global_step == 3
    assert names["trainer"].callback_metrics["loss"] > 0
    saved = torch.load("trained.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == {"model.weight", "model.bias"}
    (moments,) = saved["optimizer_states"]
    assert len(moments["state"]) == 2
    for name, value in saved["state_dict"].items():
        assert torch.equal(value, names["trained"].state_dict()[name])
    assert Path("trained.ckpt").stat().st_size < 50_000


def test_accelerate(recipe):
    names = recipe("Accelerate")
    assert names["loss"] > 0
    assert all(parameter.grad.abs().max() > 0 for parameter in names["model"].parameters())
    files = {path.name for path in Path("state").iterdir()}
    assert [name for name in files if name.startswith("model")] == ["model.safetensors"]
    assert sum(path.stat().st_size for path in Path("state").iterdir()) < 50_000


def test_data_parallel(recipe):
    model = recipe("DataParallel")["model"]
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_replicas_of_a_structural_loss_have_the_values_of_their_parts():
    """As DataParallel does it: unequal parts, and a thread for each replica."""
    loss, (x, y) = MSSSIMLoss(levels=2, reduction="none"), pair(3, 3, 32, 41)
    expected = step(lambda x, y: loss(x, y).mean(), x, y)

    def gathered(x, y):
        replicas = [loss._replicate_for_data_parallel() for _ in range(2)]
        with ThreadPoolExecutor(2) as threads:
            values = threads.map(lambda part, a, b: part(a, b), replicas, x.split(2), y.split(2))
            return torch.cat(list(values)).mean()

    for got, exact in zip(step(gathered, x, y), expected, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-9)


def test_replicas_of_a_structural_loss_follow_their_images():
    """Plans of one device do not serve another one."""
    loss, (x, y) = SSIMLoss(), pair(2, 3, 32, 41)
    loss(x, y)
    replica = loss._replicate_for_data_parallel()
    assert replica(x.to("meta"), y.to("meta")).device.type == "meta"
    assert replica(x, y) == loss(x, y)


def test_a_replica_of_a_feature_loss_refuses_other_devices():
    loss, (x, y) = VGGLoss({"relu1_2": 1.0}, weights=None), pair(2, 3, 32, 41)
    replica = replicate(loss)
    assert replica(x, y) == loss(x, y)
    text = "x is on meta and the network on cpu: nn.DataParallel does not copy the network.*outside"
    with pytest.raises(ValueError, match=text):
        replica(x.to("meta"), y.to("meta"))
    with pytest.raises(ValueError, match="move the loss with it"):
        loss(x.to("meta"), y.to("meta"))


def replicate(module):
    """A replica with those of all submodules, as `torch.nn.parallel.replicate` makes them."""
    replica = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        setattr(replica, name, replicate(child))
    return replica


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_cuda_graphs(recipe):
    names = recipe("CUDA graphs")
    x, y = names["prediction"].detach(), names["target"]
    for factor in (1.0, 0.5):
        # A replay reads the images anew, and scales the gradient anew.
        first = (factor * x).requires_grad_()
        value = names["loss"](first, y)
        (gradient,) = torch.autograd.grad(value, first, torch.tensor(factor, device="cuda"))
        expected, exact = step(SSIMLoss(), factor * x, y)
        torch.testing.assert_close(value, expected)
        assert (gradient - factor * exact).norm() < 1e-5 * exact.norm()
