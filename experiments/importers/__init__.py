"""Public code bases whose checkpoints can be imported, one file each. `FAMILIES` names them."""

from experiments.importers.enhancing import ENHANCING
from experiments.importers.family import Family, Options, Source, Weight
from experiments.importers.llamagen import LLAMAGEN
from experiments.importers.taming import TAMING
from experiments.importers.vqgan_lc import VQGAN_LC

FAMILIES: dict[str, Family] = {"taming": TAMING, "enhancing": ENHANCING, "vqgan-lc": VQGAN_LC, "llamagen": LLAMAGEN}

__all__ = ["FAMILIES", "Family", "Options", "Source", "Weight"]
