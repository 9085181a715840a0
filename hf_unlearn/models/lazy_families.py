"""SimCLR and MoCo become known to transformers' Auto classes at `import hf_unlearn`, and are imported when asked for.

transformers has no entry points for model families; its registry is filled by importing the modules that call
`AutoConfig.register`, which import PyTorch. Here the registry is told two names, and imports the module of one when a
checkpoint is of it. If transformers' registry has not been imported yet, this waits until it is.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

FAMILIES = {"simclr": "hf_unlearn.models.simclr", "moco": "hf_unlearn.models.moco"}
REGISTRY = "transformers.models.auto.configuration_auto"


class _Configs(dict[str, object]):
    """What is registered with `AutoConfig`; a family of this library registers itself when it is first looked up."""

    def __contains__(self, model_type: object) -> bool:
        return model_type in FAMILIES or super().__contains__(model_type)

    def __missing__(self, model_type: str) -> object:
        importlib.import_module(FAMILIES[model_type])
        return dict.__getitem__(self, model_type)


class _AfterImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds transformers' registry as Python does, and adds the families once it has been imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The registry's own spec, with this class as its loader; None for every other module."""
        if fullname != REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None:
            assert spec.loader is not None
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the registry's own loader does."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As the registry's own loader does, and then the families."""
        self.loader.exec_module(module)
        _add_to(module)


def register_families() -> None:
    """Let the Auto classes know SimCLR and MoCo, without importing PyTorch or transformers."""
    if REGISTRY in sys.modules:
        _add_to(sys.modules[REGISTRY])
    else:
        sys.meta_path.insert(0, _AfterImport())


def _add_to(registry: ModuleType) -> None:
    mapping = registry.CONFIG_MAPPING
    if not isinstance(mapping._extra_content, _Configs):
        mapping._extra_content = _Configs(mapping._extra_content)
