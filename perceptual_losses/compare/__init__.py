"""Metrics of image files, for ``perceptual-losses compare``.

`files` pairs the images, `measure` computes, `metrics` has statistics, and `output`, `html` and
`figures` show them; `options` and `cli` are the command. Packages that only the command needs, such
as Pillow and Matplotlib, are imported where they are used.
"""
