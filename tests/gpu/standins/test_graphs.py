"""Calls in CUDA graphs, and graphs of autograd that are used twice."""

import pytest
import standins
import steps
import torch

from perceptual_losses import L1SSIMLoss, MSSSIMLoss, SSIMLoss

SHAPE = 2, 3, 64, 90
LOSSES = {"SSIM": SSIMLoss, "L1-SSIM": L1SSIMLoss, "MS-SSIM": MSSSIMLoss}


@pytest.fixture(params=LOSSES)
def loss(request, data_range):
    options = {"levels": 3} if request.param == "MS-SSIM" else {}
    return LOSSES[request.param](data_range=data_range, **options)


@pytest.fixture
def cached():
    """Torch's cache of memory, as a graph has a pool of its own in it."""
    torch.cuda.memory.caching_allocator_enable(True)


def step_of(loss, x, y):
    value = loss(x, y)
    return value.detach(), torch.autograd.grad(value, x)[0]


def names(launches):
    return [event.name for event in launches]


def described(recording):
    return [(event.name, event.function, event.grid, event.threads) for event in recording.launches]


@pytest.mark.usefixtures("cached")
def test_a_captured_step(loss):
    x, y = steps.images(*SHAPE)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step_of(loss, x, y)
    with standins.record() as usual:
        step_of(loss, x, y)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), standins.record() as captured:
        value, gradient = step_of(loss, x, y)
    assert all(event.captured for event in captured.events if event.kind != "allocation")
    assert names(captured.triton) == names(usual.triton)
    with standins.record() as replayed:
        graph.replay()
        graph.replay()
    found = [event for event in replayed.events if event.replayed]
    expected = [event for event in captured.events if event.captured]
    told = {"captured": False, "replayed": True, "stream": 0}
    assert found == 2 * [event._replace(**told) for event in expected]
    # torch sets the state of its random numbers itself before it replays a graph.
    assert not [event for event in replayed.triton if not event.replayed]
    arrived = {p.value for event in replayed.triton for p in event.parameters}
    assert {tensor.data_ptr() for tensor in (x, y, value, gradient)} <= arrived
    with standins.record() as after:
        step_of(loss, x, y)
    assert described(after) == described(usual)
    assert not any(event.captured for event in after.events)


@pytest.mark.usefixtures("cached")
def test_a_graph_shares_no_memory_with_calls_beside_it(loss):
    """It is replayed on any stream, at any time, and sets its counter of programs itself."""
    x, y = steps.images(*SHAPE, gradients=0)
    loss(x, y)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), standins.record() as captured:
        # It stays, as a graph's results do.
        value = loss(x, y)
    with standins.record() as beside:
        loss(x, y)
    found = []
    for recording in captured, beside:
        parameters = [p for event in recording.triton for p in event.parameters]
        found.append({p.value for p in parameters if p.block})
    shared = found[0] & found[1]
    assert shared == {x.data_ptr(), y.data_ptr()}
    assert value.data_ptr() in found[0]


@pytest.mark.usefixtures("cached")
def test_the_first_call_in_a_graph(loss):
    """All is planned and loaded meanwhile, and nothing of the graph's memory is kept."""
    other = type(loss)(**loss.options)
    x, y = steps.images(*SHAPE)
    # The kernels are there, and another loss has made the stream's counter.
    step_of(loss, x, y)
    graph = torch.cuda.CUDAGraph()
    other.k1 = 0.02
    with torch.cuda.graph(graph), standins.record() as captured:
        step_of(other, x, y)
    assert all(event.captured for event in captured.launches)
    assert not captured.of("load")
    graph.reset()
    with standins.record() as usual:
        step_of(loss, x, y)
    with standins.record() as after:
        step_of(other, x, y)
    assert described(after) == described(usual)


@pytest.mark.usefixtures("cached")
def test_the_stand_ins_refuse_to_wait_in_a_graph():
    """So a call that synchronises would fail the tests above."""
    x, _ = steps.images(*SHAPE)
    refused = pytest.raises(RuntimeError, match="not while a stream is captured")
    with refused, torch.cuda.graph(torch.cuda.CUDAGraph()):
        x.detach().sum().item()


def test_a_second_backward(loss):
    """The first one has changed the saved gradients. The second one computes them again."""
    x, y = steps.images(*SHAPE)
    value = loss(x, y)
    upstream = torch.ones_like(value)
    recordings, gradients = [], []
    for _ in range(3):
        with standins.record() as recording:
            gradients += torch.autograd.grad(value, x, upstream, retain_graph=True)
        recordings.append(recording)
    first, second, third = (names(recording.triton) for recording in recordings)
    assert len(first) == 1
    assert second == third
    assert len(second) > 1
    assert second[-1:] == first
    blocks = [standins.block(gradient.data_ptr()) for gradient in gradients]
    assert len(set(blocks)) == 3


def test_second_derivatives(loss, through_triton):
    """They are the reference's, in torch's own kernels."""
    x, y = steps.images(*SHAPE)
    for _ in range(2):
        value = loss(x, y)
        launched = len(through_triton)
        with standins.record() as recording:
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            (second,) = torch.autograd.grad(gradient.sum(), x)
        assert gradient.requires_grad
        assert second.shape == x.shape
        assert recording.launches
        assert not recording.triton
        assert len(through_triton) == launched


def test_memory_of_a_step(loss):
    """Beyond the images, a gradient and for several levels those of the coarser ones."""
    x, y = steps.images(4, 3, 256, 384)
    step_of(loss, x, y)
    torch.cuda.memory.caching_allocator_enable(True)
    step_of(loss, x, y)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = step_of(loss, x, y)
    peak = torch.cuda.max_memory_allocated() - before
    gradient = kept[1].numel() * 4
    assert gradient <= peak < (1.8 if isinstance(loss, MSSSIMLoss) else 1.02) * gradient + 2**15


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_no_synchronisation(loss):
    x, y = steps.images(*SHAPE)
    step_of(loss, x, y)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step_of(loss, x, y)
        if hasattr(loss, "value_and_grad"):
            loss.value_and_grad(x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")
