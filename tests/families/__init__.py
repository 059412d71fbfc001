"""What every family is tested with, one file for each `model_type` (named by it, or by `MODEL_TYPE`):

- `SIZES`: a tiny config, to which the fields of a case are added.
- `CASES`: at least four, with every switch that the family's config has.
- `REFUSED`, where it has switches that cannot be expressed: fields, and what is said about them.
- `PUBLISHED`: config.json files of published models, as far as they matter, and how many parameters those have.
"""

import importlib
import pkgutil

MODULES = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
FAMILIES = {getattr(m, "MODEL_TYPE", m.__name__.rpartition(".")[2]): m for m in MODULES if hasattr(m, "CASES")}
SIZES = {name: family.SIZES for name, family in FAMILIES.items()}
CASES = {name: family.CASES for name, family in FAMILIES.items()}
REFUSED = [(name, *case) for name, family in FAMILIES.items() for case in getattr(family, "REFUSED", ())]
PUBLISHED = {name: model for m in MODULES for name, model in getattr(m, "PUBLISHED", {}).items()}
