"""One check of a whole filesystem."""

from __future__ import annotations

from contextlib import AsyncExitStack

from gridfs.fsck.look import PAUSE_S, Examiner
from gridfs.fsck.repair import repair
from gridfs.fsck.report import Report
from gridfs.meta import thin
from gridfs.meta.thin import Say, ThinClient
from gridfs.types import Endpoints


async def check(client: ThinClient, secret: bytes, say: Say, *, mend: bool = False, pause_s: float = PAUSE_S) -> Report:
    """Compare table and chunk servers, and with `mend` repair what is safe. Raises as `Examiner.examine`."""
    async with AsyncExitStack() as stack:
        examiner = Examiner(client, secret, stack, say, pause_s)
        finding = await examiner.examine()
        repairs = []
        if mend:
            say("repairing")
            repairs = [outcome async for outcome in repair(examiner, finding)]
        return Report(finding.look, finding.faults, repairs)


def check_now(endpoints: Endpoints, say: Say, *, mend: bool = False) -> Report:
    """`check`, from outside trio. Raises GridfsError with a sentence when the filesystem could not be checked."""
    return thin.run(endpoints, lambda client: check(client, endpoints.secret, say, mend=mend))
