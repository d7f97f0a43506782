"""Tests over real Ray nodes; the pytest process attaches as a mount does, without the kernel."""
