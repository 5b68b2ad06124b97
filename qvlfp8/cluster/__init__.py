"""Carrying out a plan on a Ray cluster: every step a task, on whichever node has what it takes.

::

    driver   place.py      starts tasks, takes in what they say, tries errors again (retry.py, lost.py)
             line.py       the tasks whose turn has not come
             ray_tasks.py  those that Ray has
             finished.py   what is done, in the shared store and in the driver's
             given_up.py   what the driver says where no node answered
             connect.py    finds the cluster, and sees that each node can do what is asked
    node     node.py       carries one task out with that node's own engine
             node_store.py where it does so
    both     order.py      what a node is told
             shared.py     finished steps, where all nodes reach them
"""
