"""The wheel holds everything that runs need, wherever they are started."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_works_from_another_directory(tmp_path):
    def run(*command: str, **environment: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    # A copy: building in place would leave a build folder that later wheels take stale files from.
    shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "runs"))
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheel", "./source")
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    run(*pip, "install", "--no-deps", "--target", "site", str(wheel))
    site = str(tmp_path / "site")

    def convoy(*arguments: str) -> str:
        program = f"import sys, core, core.cli; assert core.__file__.startswith({site!r}); sys.exit(core.cli.main())"
        return run(sys.executable, "-c", program, *arguments, PYTHONPATH=site)

    assert "width: 128" in convoy("train", "algo=madiff_published", "--cfg")
    tiny = ("trainer.steps=4", "algo.width=16", "algo.horizon=4", "run=run", "data=data")
    convoy("collect", "episodes=4", "data=data")
    convoy("train", *tiny)
    convoy("evaluate", "run=run", "episodes=2")
    convoy("report", "run")
    assert "</html>" in (tmp_path / "run" / "report.html").read_text()
