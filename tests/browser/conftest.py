"""A JupyterLab server on a copy of the notebooks, and Debian's Chromium to look at it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # else cells out of sight do not exist
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


def chromium():
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """Address of a running JupyterLab: (url, token)."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", home / "notebooks")
    shutil.copytree(ROOT / "figures", home / "figures")
    for plugin, values in SETTINGS.items():
        package, _, name = plugin.rpartition("/")
        folder = home / "settings" / package
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jupyterlab-settings").write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, environment = (
        "walkthrough",
        dict(os.environ, JUPYTERLAB_SETTINGS_DIR=str(home / "settings"), OMP_NUM_THREADS="1"),
    )
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1"]
    command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={home / 'notebooks'}"]
    command += [f"--LabApp.workspaces_dir={home / 'workspaces'}", "--LabApp.news_url=None"]
    with (home / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, env=environment) as server:
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_for(url + f"/api/status?token={token}", server, home / "log")
            yield url, token
        finally:
            server.terminate()


def _wait_for(address, server, log, seconds=90):
    for _ in range(seconds * 2):
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail("JupyterLab did not start:\n" + log.read_text()[-3000:])


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
    executable = chromium()
    if executable is None:
        pytest.fail("no chromium on this machine; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as p:
        chrome = p.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        yield chrome
        chrome.close()
