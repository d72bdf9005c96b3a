"""Channel pruning: which channels a network can do without, and what its widths are then.

``prune_plan`` takes a recorded graph, its model, a score and a request; the scores are in ``scores`` and ``sfvr``.
"""
