"""Jobs that run where a file's bytes are: what may be asked for, and the parts of them that run on a node."""
