"""Starting, changing and stopping one supervisord and its programs."""
