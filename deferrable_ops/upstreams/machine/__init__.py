"""The class :class:`Machine`: the operations on a machine on which a supervisord runs. This package also implements
these operations for the local host.
"""
