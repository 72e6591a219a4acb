"""How fast this machine trains: `onecycle bench`.

The pipeline's own engine and the plain loop of `student` take turns, each in a process of its own (`worker`), round
after round, so that whatever else the machine does falls on all of them alike; `rounds` keeps the medians.
Only the two processes import torch.
"""
