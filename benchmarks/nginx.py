"""nginx as the yardstick: one worker, upstream connections kept alive, nothing buffered, nothing logged."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

ADVICE = "nginx is not installed (Debian: `apt-get install nginx-light`)"

CONFIG = """\
daemon off;
{user}
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 1000000000;
    upstream stub {{
        server {upstream};
        keepalive 256;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://stub;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 1h;
        }}
    }}
}}
"""


def find() -> str | None:
    """The nginx binary; it lives in a directory that is often not on a user's path."""
    return shutil.which(
        "nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    )


def version() -> str:
    """As nginx tells it, or that there is none."""
    binary = find()
    if not binary:
        return "not installed"
    said = subprocess.run([binary, "-v"], capture_output=True, text=True, check=False).stderr
    found = re.search(r"nginx/(\S+)", said)
    return found[1] if found else said.strip()


def command(upstream: str, port: int, directory: Path) -> list[str]:
    """Write the configuration; the command that serves it."""
    binary = find()
    assert binary, ADVICE
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    text = CONFIG.format(directory=directory, user=user, upstream=urlsplit(upstream).netloc, port=port)
    config = directory / "nginx.conf"
    config.write_text(text)
    return [binary, "-p", str(directory), "-e", "stderr", "-c", str(config)]
