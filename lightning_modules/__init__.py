"""LightningModules, one a file, and the plain PyTorch parts they are made of.

    from lightning_modules import Tokenizer, VIM, Prior
    tokenizer = Tokenizer.from_pretrained("runs/experiments/RUN")

They are imported when they are first asked for, so that `networks`, `quantizers` and `losses` can be used without
Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_modules.prior import Prior
    from lightning_modules.tokenizer import Tokenizer
    from lightning_modules.vim import VIM

__all__ = ["VIM", "Prior", "Tokenizer"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{name.lower()}"), name)
