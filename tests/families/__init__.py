"""The test cases of every family, one file for each `model_type` (the file's name, or its `MODEL_TYPE`).

- `SIZES`: the fields of a tiny config. The fields of a case are added to them.
- `CASES`: at least four cases, which together cover every switch of the family's config. The cases of multimodal models
  are in support/wrappers.py.
- `REFUSED`, optional: unsupported fields, and the error message for each.
- `PUBLISHED`: the relevant config.json fields of published models, and the number of parameters of each.
"""

import importlib
import pkgutil

MODULES = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
FAMILIES = {getattr(m, "MODEL_TYPE", m.__name__.rpartition(".")[2]): m for m in MODULES if hasattr(m, "CASES")}
SIZES = {getattr(m, "MODEL_TYPE", m.__name__.rpartition(".")[2]): m.SIZES for m in MODULES if hasattr(m, "SIZES")}
CASES = {name: family.CASES for name, family in FAMILIES.items()}
REFUSED = [(name, *case) for name, family in FAMILIES.items() for case in getattr(family, "REFUSED", ())]
PUBLISHED = {name: model for m in MODULES for name, model in getattr(m, "PUBLISHED", {}).items()}
