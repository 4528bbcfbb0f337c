"""What a newcomer waits for: `make demo` and then `make test` in a fresh clone, installing included."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "project"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        for target in ("demo", "test"):
            started = time.perf_counter()
            subprocess.run(["make", target], cwd=clone, check=True, stdout=sys.stderr)
            results[f"{target}_s"] = round(time.perf_counter() - started, 1)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
