"""The systems that r1quant runs on, and what is known of each. Nothing is claimed of a system that no test runs on.

It does not know what this machine has.
"""

from __future__ import annotations

import platform
import sys

from r1quant.errors import PlatformError

NO_MPS = "Apple's MPS is not used: no test has compared its results with the processor's"


def check_platform(system: str) -> None:
    """Raises PlatformError on a system that cannot work. system: as sys.platform."""
    if system == "win32":
        raise PlatformError("r1quant does not run on native Windows yet", "use it inside WSL 2")


def platform_line() -> str:
    """This system, and how far it is tested."""
    name = f"{platform.system()} {platform.machine()}"
    if sys.platform == "darwin":
        return f"{name}: runs on the processor, but is not tested; {NO_MPS}"
    if sys.platform.startswith("linux"):
        return f"{name}: tested" if platform.machine() == "x86_64" else f"{name}: not tested, x86_64 is"
    return f"{name}: not tested"
