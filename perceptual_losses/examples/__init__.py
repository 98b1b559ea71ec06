"""Training with the losses, on photos that come with scikit-image.

``pip install "perceptual-losses[examples]"``, then ``python -m perceptual_losses.examples demo``.
"""
