"""Time and memory of the losses beside those of other packages, each checked before it is timed:
``python -m benchmarks.run``, then ``python -m benchmarks.report``.
"""
