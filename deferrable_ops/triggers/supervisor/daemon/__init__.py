"""Functions that start, reconfigure and stop one supervisord and its programs."""
