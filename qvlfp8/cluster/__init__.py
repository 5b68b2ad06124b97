"""Carrying out a plan on a Ray cluster: every step a task, on whichever node has what it takes.

::

    driver   place.py     orders and starts tasks, takes in what they say, tries errors again (retry.py)
             connect.py   finds the cluster, and sees that every node has this very qvlfp8 and the shared store
    node     node.py      carries one task out with that node's own engine, in that node's own store (node_store.py)
    both     order.py     what a node is told
             shared.py    finished steps, where all nodes reach them
"""
