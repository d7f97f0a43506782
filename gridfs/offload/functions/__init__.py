"""The built-in chunk functions."""
