"""Functions that start, change and stop one supervisord and its programs."""
