"""Metrics of image files, for ``python -m perceptual_losses compare``.

`files` finds and reads the images, `measure` computes and tabulates, `cli` is the command. Packages
that only the command needs, such as Pillow and Matplotlib, are imported where they are used.
"""
