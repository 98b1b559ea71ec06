"""Training with the losses on photos of scikit-image, a folder of images or a data set.

``pip install "perceptual-losses[examples]"``, then ``python -m perceptual_losses.examples demo``.
"""
