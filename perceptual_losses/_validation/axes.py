"""Advice for images whose axes are missing or in another order: the call that puts them right."""

from __future__ import annotations

# An axis of such a length is likely that of channels.
_CHANNELS = (1, 3, 4)


def missing_axes(name: str, shape: tuple[int, ...]) -> str:
    """The end of an error about images of too few axes; empty if there is no advice."""
    if len(shape) == 2:
        return f"; {name}[None, None] is one grey image (H, W)"
    if len(shape) != 3:
        return ""
    if _has_channels_last(shape, 0):
        return f"; {name}.permute(2, 0, 1).unsqueeze(0) is one image (H, W, C)"
    return (
        f"; {name}.unsqueeze(0) is one image (C, H, W), and {name}.unsqueeze(1) are grey images "
        "(N, H, W)"
    )


def channels_last(name: str, shape: tuple[int, ...]) -> str | None:
    """The advice for images (N, H, W, C), or ``None`` if the shape does not look like it."""
    if len(shape) == 4 and _has_channels_last(shape, 1):
        return f"{name}.permute(0, 3, 1, 2) if these are images (N, H, W, C)"
    return None


def as_images_or_volumes(name: str, shape: tuple[int, ...]) -> str | None:
    """The advice for a loss that takes images and volumes, or ``None``."""
    if len(shape) != 5:
        return channels_last(name, shape)
    if _has_channels_last(shape, 2):
        return (
            f"{name}.permute(0, 4, 1, 2, 3) if these are volumes (N, D, H, W, C), or "
            f"{name}.flatten(0, 1).permute(0, 3, 1, 2) if they are videos (B, T, H, W, C)"
        )
    if shape[2] == 1:
        slices = f"{name}.squeeze(2) if these are single slices (N, C, 1, H, W)"
        videos = f", or {name}.flatten(0, 1) if they are grey videos (B, T, 1, H, W)"
        return slices if shape[1] in _CHANNELS else slices + videos
    # One channel and three slices are a thin volume rather than a video of one frame.
    if shape[2] in _CHANNELS and shape[1] > 1:
        return f"{name}.flatten(0, 1) if these are videos (B, T, C, H, W)"
    return None


def as_images_or_frames(name: str, shape: tuple[int, ...]) -> str | None:
    """The advice for a loss that takes images and frames ``(N, C, T, H, W)``, or ``None``."""
    if len(shape) != 5:
        return channels_last(name, shape)
    if _has_channels_last(shape, 2):
        return f"{name}.permute(0, 4, 1, 2, 3) if these are videos (N, T, H, W, C)"
    if shape[2] in _CHANNELS:
        return f"{name}.transpose(1, 2) if these are videos (N, T, C, H, W)"
    return None


def _has_channels_last(shape: tuple[int, ...], first_side: int) -> bool:
    """Whether the last axis is likely that of channels, and the others sides of images."""
    return shape[-1] in _CHANNELS and min(shape[first_side:-1]) > max(_CHANNELS)
