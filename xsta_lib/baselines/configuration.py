"""What the configurations of the compared systems share."""

from ..model.configuration import PLAIN, XStaConfig


class PlainConfig(XStaConfig):
    """A plain reader's configuration: everything of X-STA off, whatever the system adds of its own."""

    normalisation: str = PLAIN["normalisation"]
    teacher: str = PLAIN["teacher"]
    calibration: str = PLAIN["calibration"]
    sharing: str = PLAIN["sharing"]
    zeta: float = PLAIN["zeta"]
    eta: float = PLAIN["eta"]
