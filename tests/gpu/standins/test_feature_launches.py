"""The launches of LPIPS's kernels for a layer's features."""

import pytest
import steps
import torch

from perceptual_losses._features.lpips import layer_distance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gradients", [0, 1, 2])
def test_launches_of_a_layer(dtype, gradients):
    """Two for the value, of which torch's adds up the programs' sums, and one for gradients."""
    weight = torch.empty(64, device="cuda")
    features = steps.images(2, 64, 15, 20, dtype=dtype, gradients=gradients)
    step = steps.take(lambda a, b: layer_distance(a, b, weight), *features)
    assert step.value.shape == (2,)
    own, summed = step.forward.launches
    assert own.name == "distance_kernel"
    assert not summed.triton
    # A program has 64 of the 300 positions.
    assert own.grid == (2 * 5, 1, 1)
    assert [event.name for event in step.backward.launches] == ["gradient_kernel"] * bool(gradients)
    for feature, gradient in zip(features, step.gradients, strict=False):
        assert gradient.dtype == dtype
        assert gradient.stride() == feature.stride()
    recordings = step.forward, step.backward
    assert not any(r.of("fill") + r.of("copy") + r.of("wait") for r in recordings)
    # The gradients, and less than a hundredth of the features' memory.
    sizes = [event.bytes for recording in recordings for event in recording.of("allocation")]
    size = features[0].nbytes
    assert sizes.count(size) == gradients
    assert sum(sizes) < (gradients + 0.02) * size


def test_float64_takes_the_formula():
    a, b = steps.images(1, 64, 3, 3, dtype=torch.float64)
    step = steps.take(layer_distance, a, b, weight=torch.empty(64, device="cuda"))
    assert not step.forward.triton + step.backward.triton
