"""How long something takes, in words."""


def duration(seconds: float) -> str:
    """Returns a time in the unit that fits.

    >>> [duration(seconds) for seconds in (41.7, 1389, 13727)]
    ['42 s', '23 min', '3.8 h']
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
