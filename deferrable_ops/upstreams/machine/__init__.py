"""The class :class:`Machine`: the operations on a machine on which a supervisord runs. Also implements these operations
for the local host.
"""
