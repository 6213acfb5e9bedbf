"""Console script `pleias`: runs `modeling_pleias.training.cli`, and imports torch only if a program needs it.

The programs are submodules of `modeling_pleias`, whose `__init__` imports torch and transformers and registers the
model. Here it runs when a program first imports something from the package itself, not with every submodule.
"""

import sys
from importlib.util import find_spec, module_from_spec
from types import ModuleType


class LazyPackage(ModuleType):
    """Package whose `__init__` runs at the first access to a name that occurs in its source."""

    def __getattr__(self, name: str):
        if name not in self.__spec__.loader.get_source(self.__name__):  # jsonargparse looks for every class here
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__class__ = ModuleType
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def main() -> None:
    """Run the command line."""
    from modeling_pleias.training.cli import main

    main()


# On import, so that it also applies to worker processes, which import the console script.
if "modeling_pleias" not in sys.modules:
    package = module_from_spec(find_spec("modeling_pleias"))
    package.__class__ = LazyPackage
    sys.modules["modeling_pleias"] = package
