"""Runs the Python blocks of documents: `python documents.py DOCUMENT ...`, each in a folder and a forked process of its own.

The processes are forked so that torch and transformers are imported once for all: what the first one imported, the others find.
Line numbers in a traceback are those of the document.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import traceback
from pathlib import Path


def run(document: Path) -> None:
    """Run the blocks of a document in their order, in one namespace."""
    text = document.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    namespace = {"__name__": "__main__"}
    for block in blocks:
        first_line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * first_line + block.group(1), str(document), "exec"), namespace)
    print(f"{document.name}: ran {len(blocks)} blocks", flush=True)


def in_a_child(document: Path, folder: Path, imported: Path) -> int:
    """The exit code of a forked process that runs a document in a folder, and leaves the names of its modules in a file."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        folder.mkdir()
        os.chdir(folder)
        run(document)
        imported.write_text("\n".join(sys.modules), encoding="utf-8")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        print(f"{document}:", file=sys.stderr)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(documents: list[Path]) -> int:
    """Run all; how many failed."""
    failed = 0
    imported = Path("modules").absolute()
    for number, document in enumerate(documents):
        failed += in_a_child(document, Path(str(number)).absolute(), imported) != 0
        if number == 0 and imported.exists():
            for name in imported.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
    return failed


if __name__ == "__main__":
    sys.exit(main(list(map(Path, sys.argv[1:]))))
