"""Sources of labelled images, one kind a file. `opening` opens them by name."""
