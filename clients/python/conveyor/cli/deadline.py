"""A bound on how long a run is followed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from conveyor.sdk.errors import WaitTimeout


@asynccontextmanager
async def deadline(seconds: float | None, run_id: str) -> AsyncIterator[None]:
    """WaitTimeout when what is within takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise WaitTimeout(f"run {run_id} has not ended within {seconds:g} s") from None
