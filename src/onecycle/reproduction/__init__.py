"""`onecycle reproduce`: a run made again, beside the workspace, and held against what was recorded of it.

    onecycle reproduce 3f2a…                   # a row of MLflow; or a DVC experiment, a git revision, `workspace`
    onecycle reproduce main --from evaluate    # these stages run again, what comes before is taken from DVC's cache
    onecycle reproduce main --from-scratch     # all of them, with a cache of their own

`record` finds what a run was made from, `worktree` is where it is made again, `surroundings` tells what differs there,
`agreement` compares, and `rerun` does one after the other.
"""
