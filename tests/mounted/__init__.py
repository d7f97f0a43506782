"""Tests through the kernel: real programs, and the mount's own promises."""
