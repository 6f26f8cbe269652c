"""Public code bases whose checkpoints can be imported, one file each. `FAMILIES` names them."""

from experiments.importers.diffusers import DIFFUSERS
from experiments.importers.enhancing import ENHANCING
from experiments.importers.family import Family, Options, Source, Tensors, Weight, below
from experiments.importers.ibq import IBQ
from experiments.importers.llamagen import LLAMAGEN
from experiments.importers.open_magvit2 import OPEN_MAGVIT2
from experiments.importers.taming import TAMING
from experiments.importers.titok import TITOK
from experiments.importers.vqgan_lc import VQGAN_LC

FAMILIES: dict[str, Family] = {
    "taming": TAMING,
    "enhancing": ENHANCING,
    "vqgan-lc": VQGAN_LC,
    "llamagen": LLAMAGEN,
    "ibq": IBQ,
    "open-magvit2": OPEN_MAGVIT2,
    "titok": TITOK,
    "diffusers": DIFFUSERS,
}


def family_of(tensors: Tensors) -> str:
    """The family whose keys these are, also under a prefix; "" where none has them."""
    fitting = {name: prefixes[0] for name, family in FAMILIES.items() if (prefixes := family.prefixes(tensors))}
    for name, prefix in fitting.items():
        mark = FAMILIES[name].mark
        if mark and any(key.startswith(mark) for key in below(tensors, prefix)):
            return name
    return next((name for name in fitting if not FAMILIES[name].mark), "")


__all__ = ["FAMILIES", "Family", "Options", "Source", "Weight", "family_of"]
