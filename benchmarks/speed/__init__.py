"""Time and memory of the losses beside those of other packages, each checked before it is timed:
``python -m benchmarks.speed.run``, then ``python -m benchmarks.speed.report``.
"""
