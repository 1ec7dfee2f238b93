"""Renders strangers' templates in processes of their own, so that none can hold up a worker.

    renderer.py   Renderer: the pool, whose waiting lines take turns
    turns.py      whose turn it is
    process.py    one process, seen from here
    frames.py     what the two say to each other
    boot.py       the process's first steps: it takes its own liberties away
    child.py      the process's loop

Nothing is imported here, because the processes import this package, too.
"""
