"""Sizes on the command line."""

from __future__ import annotations

from typing import Any

import click

from gridfs import config


class Size(click.ParamType[int]):
    """An option's value such as 3GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes; a usage error if it is no size, or zero."""
        try:
            size_bytes = value if isinstance(value, int) else config.parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if size_bytes <= 0:
            self.fail("a size has to be more than nothing", param, ctx)
        return size_bytes
