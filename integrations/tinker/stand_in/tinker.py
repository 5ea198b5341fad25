"""What `import tinker` reads where this folder is on the path: lossbook's door comes in its place."""

import importlib

importlib.import_module(
    "lossbook.integrations.tinker.alias"
).install()  # relative imports need a package, and this is none
